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
from .core import CoreTuple, core_pattern, gather_values

MatrixTuple: TypeAlias = tuple[int, int, int, bool]  # address, dtype, leading dimension, along
NO_MATRIX: MatrixTuple = (0, 0, 0, False)
# Devices are always named: the core writes to these addresses, whatever the default device is.
_CPU = torch.device("cpu")


def readable(x: Tensor) -> Tensor:
    """A matrix as the core reads it: adjacent along a dimension, nothing overlapping."""
    if x.is_neg():
        x = x.resolve_neg()
    if x.is_contiguous():
        return x
    rows, columns = x.stride()
    if (columns == 1 or x.shape[1] <= 1) and rows >= x.shape[1]:
        return x
    if (rows == 1 or x.shape[0] <= 1) and columns >= x.shape[0]:
        return x
    return x.contiguous()


def as_batch(x: Tensor) -> MatrixTuple:
    """A readable (lanes, features) matrix."""
    rows, columns = x.stride()
    along = columns != 1 and x.shape[1] > 1
    return x.data_ptr(), DTYPE_CODES[x.dtype], columns if along else rows, along


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
    core: CoreTuple | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``x (W⊙M)ᵀ + b`` for x of shape (batch, columns), in the dtype of x.

    Args:
        x: (batch, columns).
        weight: (rows, ...), of the dtype of x or (autocast) another one.
        bias: (rows,) or None.
        pattern: :attr:`SparsityPattern.tensors`.
        sparse: by kept entries, rather than a masked copy and torch's product.
        keep: whether the kept values are wanted too.
        core: ``core_pattern(pattern)``, where that is known.

    Returns:
        The result, and the kept values in row order (None unless ``sparse`` and ``keep``).
    """
    if not sparse:
        with precision.without_autocast(x):
            masked = masked_copy(weight, pattern).to(x.dtype)
            shift = None if bias is None else bias.to(x.dtype)
            return torch.nn.functional.linear(x, masked, shift), None
    x, weight = readable(x), rows_of(weight)
    batch, rows = x.shape[0], weight.shape[0]
    dtype = accumulation_dtype(x.dtype)
    out = x.new_empty(batch, rows)
    if batch == 0 or rows == 0:
        return out, gather_values(weight, pattern) if keep else None
    values = memory.empty((pattern[2].shape[0],), dtype, pattern[1]) if keep else None
    shift = None if bias is None else contiguous(bias.to(dtype))
    native.cpu().masked_product(
        core or core_pattern(pattern),
        dtype == torch.float64,
        0,
        as_batch(weight),
        0 if values is None else values.data_ptr(),
        batch,
        as_batch(x),
        0 if shift is None else shift.data_ptr(),
        as_batch(out),
        torch.get_num_threads(),
    )
    return out, values


def masked_linear_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    values: Tensor | None,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    straight_through: bool,
    sparse_input: bool,
    sparse_weight: bool,
    core: CoreTuple | None = None,
) -> list[Tensor | None]:
    """The gradients of :func:`masked_linear` for x, the weight and the bias; None if not needed.

    Args:
        grad: (batch, rows), of the result.
        x: as in the forward pass.
        weight: as in the forward pass.
        values: the kept values; None or nothing: then they are gathered again.
        pattern: as in the forward pass.
        needs: which gradients.
        straight_through: the dense gradient of the weight, as if there were no mask.
        sparse_input: the gradient of x by kept entries.
        sparse_weight: the masked gradient of the weight by kept entries.
        core: ``core_pattern(pattern)``, where that is known.
    """
    need_x, need_weight, need_bias = needs
    by_entries = need_weight and sparse_weight and not straight_through
    x_by_entries = need_x and sparse_input
    x_grad = weight_grad = bias_grad = None
    if by_entries != need_weight or x_by_entries != need_x or not (by_entries or x_by_entries):
        with precision.without_autocast(grad):
            if need_weight and not by_entries:
                weight_grad = _dense_weight_grad(grad, x, weight, pattern, straight_through)
            if need_x and not sparse_input:
                x_grad = grad @ masked_copy(weight, pattern).to(grad.dtype)
            if need_bias and not (by_entries or x_by_entries):
                bias_grad = grad.sum(dim=0)
    if not (by_entries or x_by_entries):
        return [x_grad, weight_grad, bias_grad]
    batch, dtype = grad.shape[0], accumulation_dtype(grad.dtype)
    values_grad = in_grad = None
    if by_entries:
        weight_grad = memory.empty_like(weight, pattern[1])
        values_grad = memory.empty((pattern[2].shape[0],), dtype, pattern[1])
    if x_by_entries:
        alike = x.is_contiguous()
        x_grad = in_grad = torch.empty_like(x) if alike else x.new_empty(*x.shape)
        if values is None or not values.numel():
            values = gather_values(rows_of(weight), pattern)
    if need_bias:
        bias_grad = torch.empty(grad.shape[1], dtype=dtype, device=_CPU)
    if grad.numel() == 0 or x.numel() == 0:  # an empty batch, or no features on a side
        for result in (in_grad, weight_grad if by_entries else None):
            if result is not None:
                result.zero_()
        return [x_grad, weight_grad, grad.sum(dim=0) if need_bias else None]
    grad, x = readable(grad), readable(x)
    native.cpu().masked_gradients(
        core or core_pattern(pattern),
        dtype == torch.float64,
        0 if values is None else values.data_ptr(),
        batch,
        as_batch(grad),
        as_batch(x),
        NO_MATRIX if in_grad is None else as_batch(in_grad),
        0 if values_grad is None else values_grad.data_ptr(),
        0 if weight_grad is None or not by_entries else weight_grad.data_ptr(),
        DTYPE_CODES[weight.dtype],
        0 if bias_grad is None else bias_grad.data_ptr(),
        torch.get_num_threads(),
    )
    if bias_grad is not None and bias_grad.dtype != grad.dtype:
        bias_grad = bias_grad.to(grad.dtype)
    return [x_grad, weight_grad, bias_grad]


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
    if weight.dim() == 2 and product.dtype is weight.dtype:
        return product
    return product.to(weight.dtype).view(weight.shape)
