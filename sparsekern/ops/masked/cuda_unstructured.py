"""Masked products by kept entries on the CUDA kernels: memory and addresses for each launch.

The kernels read a batch feature by feature: (features, leading), where the leading dimension is
the batch rounded up to 16 bytes and the rest of it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ..launching import where
from ..memory import contiguous
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES
from .calls import rows_of
from .device_pattern import core_pattern

_VECTOR_BYTES = 16
_NO_WEIGHT = (0, 0, 0)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, pattern: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensor]:
    """``x (W⊙M)ᵀ + b`` for x of shape (batch, columns), and the kept values if wanted."""
    values = gather(weight, pattern)
    shift = None if bias is None else contiguous(bias.to(values.dtype))
    out = product(values, weight, feature_major(x), pattern, bias=shift)
    return batch_major(out, x.shape[0]), values if keep else values.new_empty(0)


def input_grad(grad: Tensor, weight: Tensor, kept: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """``grad (W⊙M)``; ``kept`` is what the forward pass kept, or empty."""
    if kept.shape != pattern[2].shape:
        kept = gather(weight, pattern)
    out = product(kept, weight, feature_major(grad), pattern, transposed=True)
    return batch_major(out, grad.shape[0])


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """``M⊙(gradᵀ x)``, dense, in the dtype of the weight."""
    out = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
    sampled(feature_major(grad), feature_major(x), pattern, out, dense=True)
    return out


def gather(weight: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """The kept weights in row order, in the accumulation dtype, as far as they have room."""
    weight = rows_of(weight)
    dtype = accumulation_dtype(weight.dtype)
    values = torch.empty(pattern[2].shape, dtype=dtype, device=weight.device)
    native.cuda().gather_values(
        where(values), core_pattern(pattern), _weight(weight), values.data_ptr()
    )
    return values


def product(
    values: Tensor,
    weight: Tensor | None,
    x: Tensor,
    pattern: Sequence[Tensor],
    *,
    transposed: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """The matrix of these values, or its transpose, times a feature-major x.

    Args:
        values: in row order and the accumulation dtype.
        weight: read in place of the values where the pattern is incomplete; None where it is
            known not to be.
        x: (features, leading).
        pattern: :attr:`SparsityPattern.tensors`.
        transposed: whether the matrix is transposed.
        bias: added to each row of the result, in the accumulation dtype.

    Returns:
        Feature-major too, of the same leading dimension.
    """
    features = pattern[3 if transposed else 1].shape[0] - 1
    out = torch.empty((features, x.shape[1]), dtype=x.dtype, device=x.device)
    native.cuda().multiply(
        where(out),
        core_pattern(pattern),
        transposed,
        DTYPE_CODES[x.dtype],
        values.data_ptr(),
        _NO_WEIGHT if weight is None else _weight(rows_of(weight)),
        x.shape[1],
        (x.data_ptr(), x.stride(0)),
        0 if bias is None else bias.data_ptr(),
        (out.data_ptr(), out.stride(0)),
    )
    return out


def sampled(a: Tensor, x: Tensor, pattern: Sequence[Tensor], out: Tensor, *, dense: bool) -> None:
    """Products of rows of the feature-major a and x at the kept entries, written to out.

    Args:
        a: (rows, leading).
        x: (columns, leading).
        pattern: :attr:`SparsityPattern.tensors`.
        out: of any dtype, one value per kept entry, or (rows, columns) if dense.
        dense: whether each value goes to its place in a matrix; the others are left alone.
    """
    native.cuda().sample(
        where(out),
        core_pattern(pattern),
        DTYPE_CODES[a.dtype],
        a.shape[1],
        (a.data_ptr(), a.stride(0)),
        (x.data_ptr(), x.stride(0)),
        out.data_ptr(),
        DTYPE_CODES[out.dtype],
        dense,
    )


def feature_major(x: Tensor) -> Tensor:
    """(batch, features) as the kernels read it; x itself where it lies so already."""
    if x.is_neg():
        x = x.resolve_neg()
    batch, features = x.shape
    vector = _VECTOR_BYTES // x.element_size()
    if (
        x.stride(0) == 1
        and batch % vector == 0
        and x.stride(1) % vector == 0
        and x.stride(1) >= batch
        and x.data_ptr() % _VECTOR_BYTES == 0
    ):
        return x.t()
    leading = -(-batch // vector) * vector
    out = torch.empty((features, leading), dtype=x.dtype, device=x.device)
    if x.stride(0) == 1 and batch > 1:  # features first, and only the ends of rows are wrong
        out[:, batch:] = 0
        out[:, :batch] = x.t()
        return out
    _transpose(x if x.stride(1) == 1 or features <= 1 else x.contiguous(), out)
    return out


def batch_major(x: Tensor, batch: int) -> Tensor:
    """A feature-major matrix back to a contiguous (batch, features)."""
    out = torch.empty((batch, x.shape[0]), dtype=x.dtype, device=x.device)
    _transpose(x[:, :batch], out)
    return out


def _transpose(x: Tensor, out: Tensor) -> None:
    if out.numel() == 0:  # whose strides are not what they would be
        return
    native.cuda().transpose(
        where(out),
        x.element_size(),
        (x.data_ptr(), x.stride(0)),
        *x.shape,
        (out.data_ptr(), out.stride(0)),
    )


def _weight(weight: Tensor) -> tuple[int, int, int]:
    return weight.data_ptr(), DTYPE_CODES[weight.dtype], weight.stride(0)
