"""Tensors as the compiled core reads and writes them element by element, in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_dense(x: Tensor) -> bool:
    """Whether the elements of x lie adjacent in memory, in whatever order of dimensions."""
    if x.is_contiguous():
        return True
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return x.dim() == 2 and x.t().is_contiguous()


def dense(x: Tensor) -> Tensor:
    """The elements of x adjacent in memory, in whatever order: x itself where they are."""
    if x.is_neg():
        x = x.resolve_neg()
    return x if is_dense(x) else x.contiguous()


def contiguous(x: Tensor) -> Tensor:
    """The elements of x adjacent in memory, the last dimension fastest: x itself where they are."""
    if x.is_neg():
        x = x.resolve_neg()
    return x.contiguous()


def describe(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Address and number of elements of each, as the compiled core takes a list of tensors."""
    return [(x.data_ptr(), x.numel()) for x in tensors]
