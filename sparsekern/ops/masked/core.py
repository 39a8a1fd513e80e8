"""What the compiled core is told of a pattern, and the values that it gathers by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ... import native
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES

# Rows, columns, entries; addresses of the orders and of the structure.
CoreTuple: TypeAlias = tuple[int, ...]


def core_pattern(tensors: Sequence[Tensor]) -> CoreTuple:
    """What the compiled core is told of a pattern: sizes and addresses."""
    addresses = [tensor.data_ptr() for tensor in tensors[1:]]
    return (
        tensors[1].shape[0] - 1,
        tensors[3].shape[0] - 1,
        tensors[2].shape[0],
        *addresses,
        *(0 for _ in range(6 - len(addresses))),  # its structure, before that is looked for
    )


def gather_values(weight: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The kept entries of a dense weight, in row order and the accumulation dtype."""
    dtype = accumulation_dtype(weight.dtype)
    values = torch.empty(tensors[2].shape[0], dtype=dtype, device="cpu")
    native.cpu().gather_values(
        core_pattern(tensors),
        dtype == torch.float64,
        (weight.data_ptr(), DTYPE_CODES[weight.dtype], weight.stride(0), False),
        values.data_ptr(),
        torch.get_num_threads(),
    )
    return values
