"""Calls of the compiled masked core: memory for their results, addresses in, tensors out.

A batch is a matrix [lane][feature], whose lanes or whose features are adjacent in memory: the core
reads and writes both, so that a transposed operand costs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ... import native
from .. import precision
from ..memory import contiguous
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES
from . import memory
from .pattern import core_pattern, gather_values

MatrixTuple: TypeAlias = tuple[int, int, int, bool]  # address, dtype, leading dimension, along
_NO_MATRIX: MatrixTuple = (0, 0, 0, False)
# Devices are always named: the core writes to these addresses, whatever the default device is.
_NOTHING = torch.empty(0, device="cpu")


def _readable(x: Tensor) -> Tensor:
    """A matrix as the core reads it: adjacent along a dimension, nothing overlapping."""
    if x.is_neg():
        x = x.resolve_neg()
    rows, columns = x.stride()
    if (columns == 1 or x.shape[1] <= 1) and rows >= x.shape[1]:
        return x
    if (rows == 1 or x.shape[0] <= 1) and columns >= x.shape[0]:
        return x
    return x.contiguous()


def _batch(x: Tensor) -> MatrixTuple:
    """A readable (lanes, features) matrix."""
    along = x.stride(1) != 1 and x.shape[1] > 1
    return x.data_ptr(), DTYPE_CODES[x.dtype], x.stride(1) if along else x.stride(0), along


def rows_of(weight: Tensor) -> Tensor:
    """The weight as (rows, columns) with adjacent columns."""
    if weight.is_neg():
        weight = weight.resolve_neg()
    weight = weight.flatten(1) if weight.dim() != 2 else weight
    return weight if weight.shape[1] <= 1 or weight.stride(1) == 1 else weight.contiguous()


def masked_copy(weight: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """The weight as (rows, columns), zeros where the mask is False, whatever lies there."""
    weight, mask = rows_of(weight), pattern[0]
    rows, columns = weight.shape
    copy = memory.empty((rows, columns), weight.dtype, pattern[1])
    native.cpu().keep_masked(
        weight.data_ptr(),
        weight.stride(0),
        mask.data_ptr(),
        columns,
        rows,
        columns,
        weight.element_size(),
        copy.data_ptr(),
        torch.get_num_threads(),
    )
    return copy


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    sparse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """``x (W⊙M)ᵀ + b`` for x of shape (batch, columns), in the dtype of x.

    Args:
        x: (batch, columns).
        weight: (rows, ...), of the dtype of x or (autocast) another one.
        bias: (rows,) or None.
        pattern: :attr:`SparsityPattern.tensors`.
        sparse: by kept entries, rather than a masked copy and torch's product.
        keep: whether the kept values are wanted too.

    Returns:
        The result, and the kept values in row order (nothing unless ``sparse`` and ``keep``).
    """
    if not sparse:
        with precision.without_autocast(x):
            masked = masked_copy(weight, pattern).to(x.dtype)
            shift = None if bias is None else bias.to(x.dtype)
            return torch.nn.functional.linear(x, masked, shift), x.new_empty(0)
    x, weight = _readable(x), rows_of(weight)
    batch, rows = x.shape[0], weight.shape[0]
    dtype = accumulation_dtype(x.dtype)
    out = torch.empty((batch, rows), dtype=x.dtype, device="cpu")
    nnz = pattern[2].shape[0]
    values = memory.empty((nnz,), dtype, pattern[1]) if keep else _NOTHING
    shift = _NOTHING if bias is None else contiguous(bias.to(dtype))
    if out.numel() == 0:
        return out, gather_values(weight, pattern) if keep else x.new_empty(0)
    native.cpu().masked_product(
        core_pattern(pattern),
        dtype == torch.float64,
        0,
        _batch(weight),
        values.data_ptr(),
        batch,
        _batch(x),
        shift.data_ptr(),
        _batch(out),
        torch.get_num_threads(),
    )
    return out, values if keep else x.new_empty(0)


def masked_linear_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    straight_through: bool,
    sparse_input: bool,
    sparse_weight: bool,
) -> list[Tensor]:
    """The gradients of :func:`masked_linear` for x, the weight and the bias; empty if not needed.

    Args:
        grad: (batch, rows), of the result.
        x: as in the forward pass.
        weight: as in the forward pass.
        values: the kept values, or nothing: then they are gathered again.
        pattern: as in the forward pass.
        needs: which gradients.
        straight_through: the dense gradient of the weight, as if there were no mask.
        sparse_input: the gradient of x by kept entries.
        sparse_weight: the masked gradient of the weight by kept entries.
    """
    need_x, need_weight, need_bias = needs
    results = [grad.new_empty(0) for _ in needs]
    by_entries = need_weight and sparse_weight and not straight_through
    batch = grad.shape[0]
    with precision.without_autocast(grad):
        if need_weight and not by_entries:
            results[1] = _dense_weight_grad(grad, x, weight, pattern, straight_through)
        if need_x and not sparse_input:
            results[0] = grad @ masked_copy(weight, pattern).to(grad.dtype)
        if need_bias and not by_entries and not (need_x and sparse_input):
            results[2] = grad.sum(dim=0)
    if not by_entries and not (need_x and sparse_input):
        return results
    dtype = accumulation_dtype(grad.dtype)
    values_grad = _NOTHING
    if by_entries:
        results[1] = memory.empty(tuple(weight.shape), weight.dtype, pattern[1])
        values_grad = memory.empty((pattern[2].shape[0],), dtype, pattern[1])
    if need_x and sparse_input:
        results[0] = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    bias_grad = torch.empty(grad.shape[1], dtype=dtype, device="cpu") if need_bias else _NOTHING
    if grad.numel() == 0 or x.numel() == 0:  # an empty batch, or no features on a side
        if need_bias:
            results[2] = grad.sum(dim=0)
        return [results[0].zero_(), results[1].zero_(), results[2]]
    if need_x and sparse_input and not values.numel():
        values = gather_values(rows_of(weight), pattern)
    grad, x = _readable(grad), _readable(x)
    native.cpu().masked_gradients(
        core_pattern(pattern),
        dtype == torch.float64,
        values.data_ptr(),
        batch,
        _batch(grad),
        _batch(x),
        _batch(results[0]) if need_x and sparse_input else _NO_MATRIX,
        values_grad.data_ptr(),
        results[1].data_ptr() if by_entries else 0,
        DTYPE_CODES[weight.dtype],
        bias_grad.data_ptr() if need_bias else 0,
        torch.get_num_threads(),
    )
    if need_bias:
        results[2] = bias_grad.to(grad.dtype)
    return results


def _dense_weight_grad(
    grad: Tensor, x: Tensor, weight: Tensor, pattern: Sequence[Tensor], straight_through: bool
) -> Tensor:
    shape = (grad.shape[1], x.shape[1])
    product = memory.empty(shape, grad.dtype, pattern[1])
    torch.mm(grad.t(), x, out=product)
    if not straight_through:
        native.cpu().keep_masked(
            product.data_ptr(),
            shape[1],
            pattern[0].data_ptr(),
            shape[1],
            *shape,
            product.element_size(),
            product.data_ptr(),
            torch.get_num_threads(),
        )
    return product.to(weight.dtype).view(weight.shape)


def masked_spmm(values: Tensor, b: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """The matrix of these kept values times b: (columns, d) -> (rows, d)."""
    rows = pattern[1].shape[0] - 1
    out = torch.empty((rows, b.shape[1]), dtype=b.dtype, device="cpu")
    if out.numel() == 0:
        return out
    b = _readable(b)
    dtype = accumulation_dtype(b.dtype)
    values = contiguous(values.to(dtype))
    native.cpu().masked_product(
        core_pattern(pattern),
        dtype == torch.float64,
        values.data_ptr(),
        _NO_MATRIX,
        0,
        b.shape[1],
        _batch(b.t()),
        0,
        _batch(out.t()),
        torch.get_num_threads(),
    )
    return out


def masked_spmm_grad(
    grad: Tensor, values: Tensor, b: Tensor, pattern: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """The gradients of :func:`masked_spmm` for values and b; empty where not needed."""
    dtype = accumulation_dtype(b.dtype)
    nnz = values.shape[0] if needs[0] else 0
    values_grad = torch.empty(nnz, dtype=dtype, device="cpu")
    b_grad = torch.empty(b.shape if needs[1] else (0,), dtype=b.dtype, device="cpu")
    if grad.numel() == 0 or b.numel() == 0:
        return [values_grad.zero_().to(values.dtype), b_grad.zero_()]
    grad, b = _readable(grad), _readable(b)
    values = contiguous(values.to(dtype))
    native.cpu().masked_gradients(
        core_pattern(pattern),
        dtype == torch.float64,
        values.data_ptr(),
        b.shape[1],
        _batch(grad.t()),
        _batch(b.t()),
        _batch(b_grad.t()) if needs[1] else _NO_MATRIX,
        values_grad.data_ptr() if needs[0] else 0,
        0,
        0,
        0,
        torch.get_num_threads(),
    )
    return [values_grad.to(b.dtype), b_grad]


def masked_sddmm(a: Tensor, b: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """The entries of ``a @ b`` at the kept positions, in row order."""
    nnz = pattern[2].shape[0]
    dtype = accumulation_dtype(a.dtype)
    out = torch.empty(nnz, dtype=dtype, device="cpu")
    if nnz == 0 or a.shape[1] == 0:
        return out.zero_().to(a.dtype)
    a, b = _readable(a), _readable(b)
    native.cpu().masked_gradients(
        core_pattern(pattern),
        dtype == torch.float64,
        0,
        a.shape[1],
        _batch(a.t()),
        _batch(b),
        _NO_MATRIX,
        out.data_ptr(),
        0,
        0,
        0,
        torch.get_num_threads(),
    )
    return out.to(a.dtype)


def masked_sddmm_grad(
    grad: Tensor, a: Tensor, b: Tensor, pattern: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """The gradients of :func:`masked_sddmm` for a and b; empty where not needed."""
    a_grad = masked_spmm(grad, b.t(), pattern) if needs[0] else a.new_empty(0)
    b_grad = b.new_empty(0)
    if needs[1]:
        # The transposed pattern times a; what b was does not matter.
        b_grad = masked_spmm_grad(a, grad, b.t(), pattern, [False, True])[1].t()
    return [a_grad, b_grad]
