"""Calls of the compiled core where the kept values are tensors of their own: (nnz,), row by row.

A result lies in memory as the operand does that it is made for: by rows of the batch, or
(``along``) with the batch adjacent, features-major, which the core reads and writes as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import native
from .. import precision
from ..memory import contiguous
from ..precision import accumulation_dtype
from . import memory
from .calls import NO_MATRIX, as_batch, readable
from .core import CoreTuple, core_pattern, gather_values

_CPU = torch.device("cpu")


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    sparse: bool,
    along: bool,
    core: CoreTuple | None = None,
) -> Tensor:
    """``x Wᵀ + b``, W holding these values where the pattern keeps, in the dtype of x.

    Args:
        x: (batch, columns).
        values: (nnz,), of the dtype of x or (autocast) another one.
        bias: (rows,) or None.
        pattern: :attr:`SparsityPattern.tensors`.
        sparse: by kept entries, rather than the dense weight and torch's product.
        along: whether the batch is adjacent in the result.
        core: ``core_pattern(pattern)``, where that is known.

    Returns:
        (batch, rows).
    """
    if not sparse:
        with precision.without_autocast(x):
            dense = expand(values, x.dtype, pattern)
            shift = None if bias is None else bias.to(x.dtype)
            if not along:
                return F.linear(x, dense, shift)
            out = dense @ x.t()
            return (out if shift is None else out.add_(shift[:, None])).t()
    batch, rows = x.shape[0], pattern[1].shape[0] - 1
    out = _empty(batch, rows, x.dtype, along)
    if out.numel() == 0:
        return out
    x, dtype = readable(x), accumulation_dtype(x.dtype)
    values = contiguous(values.to(dtype))
    shift = None if bias is None else contiguous(bias.to(dtype))
    native.cpu().masked_product(
        core or core_pattern(pattern),
        dtype is torch.float64,
        values.data_ptr(),
        NO_MATRIX,
        0,
        batch,
        as_batch(x),
        0 if shift is None else shift.data_ptr(),
        as_batch(out),
        torch.get_num_threads(),
    )
    return out


def linear_grad(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    sparse_input: bool,
    sparse_weight: bool,
    along: bool,
    core: CoreTuple | None = None,
) -> list[Tensor | None]:
    """The gradients of :func:`linear` for x, the values and the bias; None if not needed.

    Args:
        grad: (batch, rows), of the result.
        x: as in the forward pass.
        values: as in the forward pass.
        pattern: as in the forward pass.
        needs: which gradients.
        sparse_input: the gradient of x by kept entries.
        sparse_weight: that of the values by kept entries, rather than picked from a dense one.
        along: whether the batch is adjacent in the gradient of x.
        core: ``core_pattern(pattern)``, where that is known.
    """
    need_x, need_values, need_bias = needs
    dtype = accumulation_dtype(grad.dtype)
    x_grad = values_grad = bias_grad = None
    with precision.without_autocast(grad):
        if need_x and not sparse_input:
            dense = expand(values, grad.dtype, pattern)
            x_grad = (dense.t() @ grad.t()).t() if along else grad @ dense
        if need_values and not sparse_weight:
            values_grad = gather_values(grad.t() @ x, pattern).to(values.dtype)
        by_core = (need_x and x_grad is None) or (need_values and values_grad is None)
        if need_bias and not by_core:
            bias_grad = grad.sum(dim=0)
    if not by_core:
        return [x_grad, values_grad, bias_grad]
    in_grad = sampled = summed = None
    if need_x and x_grad is None:
        x_grad = in_grad = _empty(x.shape[0], x.shape[1], x.dtype, along)
    if need_values and values_grad is None:
        sampled = torch.empty(values.shape, dtype=dtype, device=_CPU)
    if need_bias:
        summed = torch.empty(grad.shape[1], dtype=dtype, device=_CPU)
    found = [part for part in (in_grad, sampled, summed) if part is not None]
    if grad.numel() == 0 or x.numel() == 0:  # an empty batch, or no features on a side
        for part in found:
            part.zero_()
        if summed is not None:
            summed = grad.sum(dim=0)
    else:
        grad, x = readable(grad), readable(x)
        given = contiguous(values.to(dtype)) if in_grad is not None else None
        native.cpu().masked_gradients(
            core or core_pattern(pattern),
            dtype is torch.float64,
            0 if given is None else given.data_ptr(),
            grad.shape[0],
            as_batch(grad),
            as_batch(x),
            NO_MATRIX if in_grad is None else as_batch(in_grad),
            0 if sampled is None else sampled.data_ptr(),
            0,
            0,
            0 if summed is None else summed.data_ptr(),
            torch.get_num_threads(),
        )
    if sampled is not None:
        values_grad = sampled if sampled.dtype is values.dtype else sampled.to(values.dtype)
    if summed is not None:
        bias_grad = summed if summed.dtype is grad.dtype else summed.to(grad.dtype)
    return [x_grad, values_grad, bias_grad]


def expand(values: Tensor, dtype: torch.dtype, pattern: Sequence[Tensor]) -> Tensor:
    """The dense weight with these kept entries and zeros elsewhere: (rows, columns) of a dtype."""
    shape = (pattern[1].shape[0] - 1, pattern[3].shape[0] - 1)
    dense = memory.empty(shape, dtype, pattern[1])
    wide = accumulation_dtype(dtype)
    given = contiguous(values.to(wide))
    if dense.numel():
        native.cpu().scatter_values(
            core_pattern(pattern),
            wide is torch.float64,
            given.data_ptr(),
            as_batch(dense),
            torch.get_num_threads(),
        )
    return dense


def spmm(
    values: Tensor, b: Tensor, pattern: Sequence[Tensor], core: CoreTuple | None = None
) -> Tensor:
    """The matrix of these kept values times b: (columns, d) -> (rows, d)."""
    return linear(b.t(), values, None, pattern, True, True, core).t()


def spmm_grad(
    grad: Tensor,
    values: Tensor,
    b: Tensor,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    core: CoreTuple | None = None,
) -> list[Tensor | None]:
    """The gradients of :func:`spmm` for values and b; None where not needed."""
    both = (needs[1], needs[0], False)
    b_grad, values_grad, _ = linear_grad(
        grad.t(), b.t(), values, pattern, both, True, True, True, core
    )
    return [values_grad, None if b_grad is None else b_grad.t()]


def sddmm(a: Tensor, b: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """The entries of ``a @ b`` at the kept positions, in row order."""
    like = a.new_empty(pattern[2].shape[0])  # for its size and dtype alone
    found = linear_grad(a.t(), b, like, pattern, (False, True, False), True, True, False)[1]
    assert found is not None
    return found


def sddmm_grad(
    grad: Tensor, a: Tensor, b: Tensor, pattern: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of :func:`sddmm` for a and b; None where not needed."""
    a_grad = spmm(grad, b.t(), pattern) if needs[0] else None
    b_grad = None
    if needs[1]:
        # The transposed pattern times a; what b was does not matter.
        found = spmm_grad(a, grad, b.t(), pattern, [False, True])[1]
        b_grad = None if found is None else found.t()
    return [a_grad, b_grad]


def _empty(batch: int, features: int, dtype: torch.dtype, along: bool) -> Tensor:
    shape = (features, batch) if along else (batch, features)
    out = torch.empty(shape, dtype=dtype, device=_CPU)
    return out.t() if along else out
