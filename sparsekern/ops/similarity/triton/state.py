"""What a forward pass keeps for its backward pass, in one allocation; sizes without Triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...precision import accumulation_dtype

_ALIGNMENT = 256
_STATS = 8  # STATS of entries.py
_STRIP_ROWS = 8  # STRIP_ROWS of plan.py


def _aligned(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _sizes(n: int, dims: Sequence[int], element: int, products: bool) -> tuple[int, ...]:
    count = len(dims)
    strips = (n + _STRIP_ROWS - 1) // _STRIP_ROWS
    return (
        count * _STATS * 8,
        count * n * 8,
        count * strips * 2 * 8,
        count * count * 8,
        sum(dims) * element,
        count * n * n * element if products else 0,
    )


def state_bytes(n: int, dims: Sequence[int], dtype: torch.dtype, products: bool) -> int:
    """Bytes of a state.

    Args:
        n: samples.
        dims: features per layer.
        dtype: of the features.
        products: whether the Gram matrices are kept; ``gram`` of a linear kernel returns its own.
    """
    element = 8 if accumulation_dtype(dtype) == torch.float64 else 4
    return sum(_aligned(size) for size in _sizes(n, dims, element, products))


@dataclass(frozen=True)
class State:
    """Views into one allocation: see the kernels for the shapes."""

    memory: Tensor
    stats: Tensor  # (layers, 8) float64
    row_sums: Tensor  # (layers, n) float64
    parts: Tensor  # (layers, strips, 2) float64
    inner: Tensor  # (layers, layers) float64
    means: Tensor  # (sum of dims,)
    products: Tensor  # (layers, n, n)

    @classmethod
    def allocate(cls, x: Tensor, dims: Sequence[int], products: bool = True) -> State:
        """Fresh memory for features like x (n samples) of these widths."""
        size = state_bytes(x.shape[0], dims, x.dtype, products)
        memory = torch.empty(size, dtype=torch.uint8, device=x.device)
        return cls.view(memory, x, dims, products)

    @classmethod
    def view(cls, memory: Tensor, x: Tensor, dims: Sequence[int], products: bool = True) -> State:
        """The state that an earlier call left in ``memory``."""
        dtype = accumulation_dtype(x.dtype)
        wide = torch.float64
        views, at = [], 0
        types = (wide, wide, wide, wide, dtype, dtype)
        element = 8 if dtype == wide else 4
        for size, kind in zip(_sizes(x.shape[0], dims, element, products), types, strict=True):
            views.append(memory[at : at + size].view(kind))
            at += _aligned(size)
        return cls(memory, *views)
