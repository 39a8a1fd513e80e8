"""Large results in memory that has been used before.

From 32 MiB on, glibc maps every block anew and gives it back when it is freed, so that a dense
gradient of a large layer costs a page fault for each of its pages at every step: 22 ms for
4096 x 4096 float32 values that take 2 ms to write. Here such a block goes back to the pattern it
was made for when the last tensor on it dies, and the next gradient of that pattern takes it up.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import checks

_CPU = torch.device("cpu")
_LEAST_BYTES = 32 << 20  # M_MMAP_THRESHOLD's upper bound on 64-bit systems
_MOST_IDLE = 2  # blocks kept of one size: a gradient, and one more while the last is still held
_ALIGNMENT = 64
_ATTRIBUTE = "_sparsekern_idle_blocks"
# Made like another tensor, an empty one takes half the time of naming a device.
_LIKE = {dtype: torch.empty((), dtype=dtype, device=_CPU) for dtype in checks.FLOATING}


class _Idle(dict[int, list[Any]]):
    """Blocks without an owner, by size."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, owner: Tensor) -> Tensor:
    """An uninitialised CPU tensor; a large one in memory that a dead one has left behind.

    Args:
        shape: of the result.
        dtype: of the result.
        owner: a tensor as long as which idle memory is kept.
    """
    size = math.prod(shape) * dtype.itemsize
    if type(owner) is not Tensor:
        return torch.empty(shape, dtype=dtype, device=_CPU)
    if size < _LEAST_BYTES:
        return _LIKE[dtype].new_empty(*shape)
    idle: _Idle | None = getattr(owner, _ATTRIBUTE, None)
    if idle is None:
        idle = _Idle()
        setattr(owner, _ATTRIBUTE, idle)
    blocks = idle.setdefault(size, [])
    try:
        block = blocks.pop()
    except IndexError:
        block = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    offset = -block.ctypes.data % _ALIGNMENT
    memory = block[offset : offset + size]
    weakref.finalize(memory, _give_back, weakref.ref(owner), size, block).atexit = False
    storage = torch.from_numpy(memory).untyped_storage()
    strides = torch.empty(shape, device="meta").stride()
    result = torch.empty(0, dtype=dtype, device="cpu")
    return result.set_(storage, 0, shape, strides)


def empty_like(x: Tensor, owner: Tensor) -> Tensor:
    """As :func:`empty`, contiguous, of the shape and dtype of x."""
    if x.nbytes < _LEAST_BYTES and x.is_contiguous():
        return torch.empty_like(x)
    return empty(tuple(x.shape), x.dtype, owner)


def _give_back(owner: weakref.ref[Tensor], size: int, block: Any) -> None:
    alive = owner()
    if alive is None:
        return
    blocks = getattr(alive, _ATTRIBUTE)[size]
    if len(blocks) < _MOST_IDLE:
        blocks.append(block)
