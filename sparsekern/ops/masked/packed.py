"""Masked weights stored row by row: each kept value and its column, for products on the CPU.

6 bytes for each kept float32 weight, or 8 in a matrix of more than 32768 columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import native
from ..memory import contiguous
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES, are_plain, register, run
from .calls import as_batch, readable

if TYPE_CHECKING:
    from .pattern import SparsityPattern

_LINEAR, _EXPAND = "masked_packed_linear", "masked_packed_expand"
_PackedTuple: TypeAlias = tuple[int, int, int, int, int, bool, int, int, int]
_CPU = torch.device("cpu")
_NARROW = 1 << 15  # columns that an int16 tells apart


class Packed(NamedTuple):
    """A masked weight by its kept entries, row after row, the columns of a row ascending.

    Attributes:
        pointer: ``(rows + 1,)`` int32, where the entries of a row begin.
        indices: ``(nnz,)`` int16, or int32 where columns are too many: each entry's column.
        values: ``(nnz,)`` of the weight's dtype.
        structure: blocks and N:M groups as the compiled core notes them, int32; empty without any.
        columns: of the weight.
    """

    pointer: Tensor
    indices: Tensor
    values: Tensor
    structure: Tensor
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return sum(part.nbytes for part in self[:4])


def pack(weight: Tensor, pattern: SparsityPattern) -> Packed:
    """Copies the kept entries of a weight, ``(rows, columns)``; the pattern may change later."""
    pointer, index = pattern.to_csr()
    if pattern.columns <= _NARROW:
        index = index.to(torch.int16)
    structure = torch.empty(0, dtype=torch.int32, device=_CPU)
    if pattern.structure.rows or pattern.structure.strip:
        structure = pattern.tensors[6].clone()
    values = weight.masked_select(pattern.mask)
    return Packed(pointer, index, values, structure, pattern.columns)


def expand(packed: Packed, core: bool) -> Tensor:
    """The dense weight, zeros where nothing is kept: ``(rows, columns)``.

    Args:
        packed: the weight.
        core: whether the compiled core does it.
    """
    if core:
        return run(_EXPAND, *packed)  # type: ignore[no-any-return]
    lengths = packed.pointer.diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    dense = packed.values.new_zeros(len(lengths), packed.columns)
    dense[row, packed.indices.long()] = packed.values
    return dense


def linear(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b`` by the compiled core: ``(batch, columns)`` -> ``(batch, rows)``.

    Args:
        x: of the dtype of the values.
        packed: the weight.
        bias: ``(rows,)`` of that dtype, or None.
    """
    if not torch.compiler.is_compiling() and are_plain((x, bias)):
        return _linear(x, *packed, bias)
    return run(_LINEAR, x, *packed, bias)  # type: ignore[no-any-return]


def _linear(
    x: Tensor,
    pointer: Tensor,
    index: Tensor,
    values: Tensor,
    structure: Tensor,
    columns: int,
    bias: Tensor | None,
) -> Tensor:
    batch, rows, dtype = x.shape[0], pointer.shape[0] - 1, x.dtype
    out = torch.empty((batch, rows), dtype=dtype, device=_CPU)
    if batch == 0 or rows == 0:
        return out
    wide = accumulation_dtype(dtype)
    x = readable(x)
    shift = None if bias is None else contiguous(bias.to(wide))
    native.cpu().packed_product(
        _tuple(pointer, index, values, structure, columns),
        wide is torch.float64,
        batch,
        as_batch(x),
        0 if shift is None else shift.data_ptr(),
        as_batch(out),
        torch.get_num_threads(),
    )
    return out


def _expand(
    pointer: Tensor, index: Tensor, values: Tensor, structure: Tensor, columns: int
) -> Tensor:
    shape = (pointer.shape[0] - 1, columns)
    out = torch.empty(shape, dtype=values.dtype, device=_CPU)
    if out.numel():
        native.cpu().packed_expand(
            _tuple(pointer, index, values, structure, columns),
            values.dtype is torch.float64,
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def _tuple(
    pointer: Tensor, index: Tensor, values: Tensor, structure: Tensor, columns: int
) -> _PackedTuple:
    return (
        pointer.shape[0] - 1,
        columns,
        values.shape[0],
        pointer.data_ptr(),
        index.data_ptr(),
        index.dtype is torch.int16,
        values.data_ptr(),
        DTYPE_CODES[values.dtype],
        structure.data_ptr() if structure.shape[0] else 0,
    )


def _linear_fake(
    x: Tensor,
    pointer: Tensor,
    index: Tensor,
    values: Tensor,
    structure: Tensor,
    columns: int,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty(x.shape[0], pointer.shape[0] - 1)


def _expand_fake(
    pointer: Tensor, index: Tensor, values: Tensor, structure: Tensor, columns: int
) -> Tensor:
    return values.new_empty(pointer.shape[0] - 1, columns)


_WEIGHT = "Tensor pointer, Tensor index, Tensor values, Tensor structure, int columns"
register(_LINEAR, f"(Tensor x, {_WEIGHT}, Tensor? bias) -> Tensor", _linear, _linear_fake)
register(_EXPAND, f"({_WEIGHT}) -> Tensor", _expand, _expand_fake)
