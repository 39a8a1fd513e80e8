"""Selection by numpy's stable sort, and inputs that are hard for it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPARSITIES = [0.0, 0.1, 0.5, 0.9, 0.998, 1.0]


def values(tensors: list[Tensor]) -> np.ndarray:
    """All elements one after the other in float64, which holds every dtype exactly."""
    return np.concatenate([x.detach().double().flatten().numpy() for x in tensors])


def threshold(tensors: list[Tensor], sparsity: float) -> float:
    magnitudes = np.sort(np.abs(values(tensors)))
    return float(magnitudes[min(math.floor(sparsity * len(magnitudes)), len(magnitudes) - 1)])


def masks(tensors: list[Tensor], sparsity: float, magnitude: bool) -> list[Tensor]:
    scores = values(tensors)
    if magnitude:
        scores = np.abs(scores)
    kept = len(scores) - math.floor(sparsity * len(scores))
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[torch.from_numpy(np.argsort(-scores, kind="stable")[:kept])] = True
    parts = keep.split([x.numel() for x in tensors])
    return [part.reshape(x.shape) for part, x in zip(parts, tensors, strict=True)]


def network(size: int, dtype: torch.dtype) -> list[Tensor]:
    """About `size` weights in layers of different scales and shapes, one of them empty."""
    widths = [0.5, 0.01, 0.3, 0.19]
    layers = [torch.randn(max(1, int(size * w))) * 10**i / 300 for i, w in enumerate(widths)]
    layers.insert(2, torch.empty(3, 0))
    if size > 100:
        layers[0] = layers[0][: len(layers[0]) // 6 * 6].reshape(-1, 2, 3)
    return [x.to(dtype) for x in layers]


def hard_cases(dtype: torch.dtype, size: int) -> dict[str, list[Tensor]]:
    normal = torch.randn(size, dtype=torch.float64).to(dtype)
    tiny = torch.finfo(dtype).smallest_normal
    finite = torch.finfo(dtype).max
    steps = (torch.arange(size, dtype=torch.float64) % 40 - 20) * tiny / 16
    return {
        "mostly zeros": [normal * (torch.rand(size) < 0.1)],
        "zeros of both signs": [torch.where(torch.rand(size) < 0.5, -0.0, 0.0).to(dtype), normal],
        "all equal": [torch.full((size,), -0.25, dtype=dtype)],
        "three values": [torch.randint(-1, 2, (size,)).to(dtype)],
        "denormals": [steps.to(dtype), -steps.to(dtype)],
        "infinities": [torch.where(torch.rand(size) < 0.3, torch.inf, normal), -normal / 0],
        "extremes": [torch.linspace(-1, 1, size, dtype=torch.float64).to(dtype) * finite],
        "sorted": [normal.sort().values],
        "periodic": [(torch.arange(size, dtype=torch.float64) % 64).to(dtype)],
    }
