"""Seeded features for the cases, in as many copies as it takes to stay out of the caches."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .cases import FeatureCase

_CHUNK = 1 << 18  # values made at a time: small, so that no large temporary is left behind
_RANK = 16
_COPY_LIMIT = 2 << 30  # bytes of all copies together


def make(case: FeatureCase, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Features of each layer, ``(n, d_l)``, without offset.

    Each layer is a random projection of a latent that changes by a fifth from layer to layer,
    plus noise: neighbours are similar, far layers less so, as in a trained network.
    """
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(case.n, _RANK, generator=generator)
    layers = []
    for d in case.dims:
        fresh = torch.randn(case.n, _RANK, generator=generator)
        latent = 0.8**0.5 * latent + 0.2**0.5 * fresh
        layer = torch.empty(case.n, d, dtype=dtype)
        columns = max(1, _CHUNK // case.n)
        for start in range(0, d, columns):
            part = layer[:, start : start + columns]
            width = part.shape[1]
            projection = torch.randn(_RANK, width, generator=generator) / _RANK**0.5
            noise = torch.randn(case.n, width, generator=generator)
            part.copy_(latent @ projection + 0.5 * noise)
        layers.append(layer.requires_grad_(case.backward))
    return layers


def copies(case: FeatureCase, dtype: torch.dtype) -> list[list[Tensor]]:
    """Copies of one input to rotate through, so that no call finds its features in cache.

    Together they are at least three times the last-level cache, within a cap on memory.
    """
    first = make(case, dtype)
    size = sum(x.numel() * x.element_size() for x in first)
    count = max(1, min(-(-3 * last_level_cache() // size), _COPY_LIMIT // size, 512))
    more = [
        [x.detach().clone().requires_grad_(x.requires_grad) for x in first] for _ in range(1, count)
    ]
    return [first, *more]


def last_level_cache() -> int:
    """Bytes of the largest cache that the first core sees; 32 MiB where that cannot be read."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="utf-8").strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=32 << 20)
