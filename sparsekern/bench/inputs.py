"""Copies of a case's inputs: as many as it takes to stay out of the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .case import Case

_COPY_LIMIT = 2 << 30  # bytes of all copies together


def copies(case: Case, dtype: torch.dtype) -> list[Any]:
    """Copies of one input to rotate through, so that no call finds its data in cache.

    Together they are at least three times the last-level cache, within a cap on memory. Where
    less must move than the inputs hold (of a sparse weight, only what is kept), that counts.
    """
    first = case.inputs(dtype, 0)
    size = max(1, nbytes(first))
    moved = min(size, case.cost.bytes(dtype.itemsize)) if case.cost is not None else size
    wanted = -(-3 * last_level_cache() // max(1, moved))
    count = max(1, min(wanted, _COPY_LIMIT // size, case.most_copies))
    return [first, *(clone(first) for _ in range(1, count))]


def one(case: Case, dtype: torch.dtype) -> list[Any]:
    """The inputs alone, where nothing is timed."""
    return [case.inputs(dtype, 0)]


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def convert(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nested lists, tuples and dicts with every tensor converted."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(convert(item, function) for item in value)
    if isinstance(value, dict):
        return {key: convert(item, function) for key, item in value.items()}
    return value


def clone(value: Any) -> Any:
    """A copy in memory of its own, of the same layout, leaves again where they were leaves."""
    return convert(value, lambda x: x.detach().clone().requires_grad_(x.requires_grad))


def to_device(value: Any, device: str) -> Any:
    """The same on a device, leaves again where they were leaves."""
    return convert(value, lambda x: x.detach().to(device).requires_grad_(x.requires_grad))


def nbytes(value: Any) -> int:
    """Bytes of all tensors."""
    return sum(x.numel() * x.element_size() for x in tensors(value))


def double(value: Any) -> Any:
    """The same in float64, for an oracle: floating-point tensors only, leaves as before."""

    def widen(x: Tensor) -> Tensor:
        return x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x

    return convert(value, widen)


def last_level_cache() -> int:
    """Bytes of the largest cache that the first core sees; 32 MiB where that cannot be read."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="utf-8").strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=32 << 20)
