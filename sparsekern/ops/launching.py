"""Calls of the CUDA kernels: where they run, lists of tensors, scratch memory.

Kernels run on torch's current stream of the tensors' device. Memory comes from torch's allocator,
which hands it out again only to what comes later on that stream, so nothing has to be kept alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Where: TypeAlias = tuple[int, int]
Piece: TypeAlias = tuple[int, int, int, float]

# Those that torch registers kernels for: the CPU's run only under emulation.
DEVICES = ("CUDA", "CPU")


def where(x: Tensor) -> Where:
    """The device of a tensor, and torch's current stream there."""
    if x.device.type != "cuda":
        return 0, 0
    index = x.device.index
    return index, torch.cuda.current_stream(index).cuda_stream


def pieces(
    tensors: Sequence[Tensor],
    outs: Sequence[Tensor | None] | None = None,
    factors: Sequence[float] | None = None,
) -> list[Piece]:
    """Address, elements, address of the result (0: none wanted) and factor of each tensor."""
    targets = outs or [None] * len(tensors)
    return [
        (x.data_ptr(), x.numel(), 0 if out is None else out.data_ptr(), factor)
        for x, out, factor in zip(tensors, targets, factors or [0.0] * len(tensors), strict=True)
    ]


def scratch(size: int, device: torch.device) -> Tensor:
    """So many bytes of uninitialised memory."""
    return torch.empty(size, dtype=torch.uint8, device=device)
