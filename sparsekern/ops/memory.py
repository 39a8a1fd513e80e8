"""Tensors as the compiled core reads and writes them element by element, in any order."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


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
# the pages takes longer than filling them: 14 ms for 100 MB that take 7 to fill, in large pages.
# One allocation for all can have large pages, and is taken up again when nothing lies there.
_MAPPED_BYTES = 4 << 20
_ALIGNMENT = 64
# The block that a dead list of gradients left, by the first tensor that they were of.
_idle: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def like(tensors: Sequence[Tensor], needs: Sequence[bool], *, owner: Tensor | None) -> list[Tensor]:
    """Uninitialised tensors laid out as these dense ones are; an empty one where not needed.

    Args:
        tensors: dense ones of one dtype, on the CPU.
        needs: which are wanted.
        owner: lets large ones share one allocation, which lives as long as any of them; the next
            call for this owner takes it up then. None: an allocation for each.
    """
    element = tensors[0].element_size()
    sizes = [x.numel() if needed else 0 for x, needed in zip(tensors, needs, strict=True)]
    step = _ALIGNMENT // element
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + (size + step - 1) // step * step)
    if owner is None or starts[-1] * element < _MAPPED_BYTES:
        return [
            torch.empty_like(x) if needed else x.new_empty(0)
            for x, needed in zip(tensors, needs, strict=True)
        ]
    storage = _storage(starts[-1] * element, owner)
    return [
        x.new_empty(0).set_(storage, start, x.shape, x.stride()) if needed else x.new_empty(0)
        for x, needed, start in zip(tensors, needs, starts[:-1], strict=True)
    ]


def _storage(size: int, owner: Tensor) -> torch.UntypedStorage:
    """Memory of so many bytes: the block that was left for this owner, if it is as large."""
    block = _idle.pop(owner, None)
    if block is None or len(block) != size + _ALIGNMENT:
        block = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    offset = -block.ctypes.data % _ALIGNMENT
    memory = block[offset : offset + size]  # the storage keeps it, and it the block
    weakref.finalize(memory, _leave, weakref.ref(owner), block).atexit = False
    return torch.from_numpy(memory).untyped_storage()


def _leave(owner: weakref.ref[Tensor], block: Any) -> None:
    alive = owner()
    if alive is not None:
        _idle[alive] = block


def describe(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Address and number of elements of each, as the compiled core takes a list of tensors."""
    return [(x.data_ptr(), x.numel()) for x in tensors]
