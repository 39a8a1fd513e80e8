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


# From this many bytes on, fresh memory comes from the operating system page by page, and mapping
# the pages takes longer than filling them: one allocation for all can have large pages.
_MAPPED_BYTES = 4 << 20


def like(tensors: Sequence[Tensor], needs: Sequence[bool], *, together: bool) -> list[Tensor]:
    """Uninitialised tensors laid out as these dense ones are; an empty one where not needed.

    Args:
        tensors: dense ones of one dtype, on the CPU.
        needs: which are wanted.
        together: lets large ones share one allocation, which lives as long as any of them.
    """
    sizes = [x.numel() if needed else 0 for x, needed in zip(tensors, needs, strict=True)]
    step = 64 // tensors[0].element_size()  # cache lines
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + (size + step - 1) // step * step)
    together &= starts[-1] * tensors[0].element_size() >= _MAPPED_BYTES
    if not together:
        return [
            torch.empty_like(x) if needed else x.new_empty(0)
            for x, needed in zip(tensors, needs, strict=True)
        ]
    storage = tensors[0].new_empty(starts[-1]).untyped_storage()
    return [
        x.new_empty(0).set_(storage, start, x.shape, x.stride()) if needed else x.new_empty(0)
        for x, needed, start in zip(tensors, needs, starts[:-1], strict=True)
    ]


def describe(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Address and number of elements of each, as the compiled core takes a list of tensors."""
    return [(x.data_ptr(), x.numel()) for x in tensors]
