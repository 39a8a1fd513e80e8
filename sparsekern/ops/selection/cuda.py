"""Selection on the CUDA kernels: nothing waits for the device, the result stays there.

A NaN is not looked for; which element is then chosen, or kept, is not defined.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ..launching import DEVICES, pieces, scratch, where
from ..memory import contiguous, dense
from ..registry import DTYPE_CODES, register
from . import cpu
from .reference import removed_count

_FAMILY = "selection_cuda"

magnitude_threshold = functools.partial(cpu.magnitude_threshold, family=_FAMILY)
global_masks = functools.partial(cpu.global_masks, family=_FAMILY)


def _threshold(tensors: Sequence[Tensor], sparsity: float, names: str) -> Tensor:
    rows = [dense(x) for x in tensors]
    total = sum(x.numel() for x in rows)
    rank = min(removed_count(sparsity, total), total - 1)
    kernels, code, listed = native.cuda(), DTYPE_CODES[rows[0].dtype], pieces(rows)
    out = torch.empty((), dtype=rows[0].dtype, device=rows[0].device)
    memory = scratch(kernels.selection_bytes(listed, code), out.device)
    kernels.magnitude_threshold(where(out), listed, code, rank, memory.data_ptr(), out.data_ptr())
    return out


def _masks(tensors: Sequence[Tensor], sparsity: float, magnitude: bool, names: str) -> list[Tensor]:
    rows = [contiguous(x) for x in tensors]  # positions are row-major
    masks = [torch.empty(x.shape, dtype=torch.bool, device=x.device) for x in rows]
    kernels, code, listed = native.cuda(), DTYPE_CODES[rows[0].dtype], pieces(rows, masks)
    memory = scratch(kernels.selection_bytes(listed, code), rows[0].device)
    rank = removed_count(sparsity, sum(x.numel() for x in rows))
    kernels.largest_masks(where(rows[0]), listed, code, magnitude, rank, memory.data_ptr())
    return masks


for _name, _implementation in (("threshold", _threshold), ("masks", _masks)):
    register(
        f"{_FAMILY}_{_name}",
        cpu.SCHEMAS[_name],
        _implementation,
        cpu.FAKES[_name],
        devices=DEVICES,
    )
