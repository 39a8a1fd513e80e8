"""A linear layer whose weight is its kept values: the public function, its checks and shapes."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from . import cuda
from .linear import autocast_input, autocasts, implementation_for
from .pattern import SparsityPattern


def packed_linear(
    x: Tensor, values: Tensor, pattern: SparsityPattern, bias: Tensor | None = None
) -> Tensor:
    """``x Wᵀ + b``, W holding ``values`` where the pattern keeps and zeros elsewhere.

    As :func:`sparsekern.masked_linear`, but the kept values are the trained tensor: neither a dense
    weight nor a dense gradient is read or written. A matrix x whose batch is adjacent in memory
    (features-major, such as ``b.t()`` of a contiguous b) gets a result, and a gradient, that lie
    so too, by the compiled core.

    Under autocast x is cast as ``torch.nn.functional.linear`` casts it, and the result has that
    dtype; the values are read as they are stored.

    Args:
        x: ``(..., columns)``; float32, float64, bfloat16 or float16 (16-bit ones with float32
            accumulation on the CPU).
        values: ``(nnz,)`` in row order, as from :meth:`SparsityPattern.gather`, of the dtype and
            device of x.
        pattern: of W, ``(rows, columns)``.
        bias: ``(rows,)`` or None.

    Returns:
        ``(..., rows)``. Differentiable in x, values and bias.

    Raises:
        TypeError: for dtypes other than these or that differ, or another kind of pattern.
        ValueError: for shapes or devices that do not fit.
    """
    if not isinstance(pattern, SparsityPattern):
        raise TypeError(f"pattern must be a SparsityPattern, got {type(pattern).__name__}")
    tensors = {"x": x, "values": values} | ({} if bias is None else {"bias": bias})
    for name, tensor in tensors.items():
        checks.floating_tensor(tensor, name)
        if tensor.device != pattern.device:
            raise ValueError(
                f"pattern is on {pattern.device} and {name} on {tensor.device}: expected one device"
            )
    rows, columns = pattern.rows, pattern.columns
    if values.shape != (pattern.nnz,):
        raise ValueError(
            f"values must have shape ({pattern.nnz},), one per kept entry, got "
            f"{tuple(values.shape)}"
        )
    if x.dim() == 0 or x.shape[-1] != columns:
        raise ValueError(
            f"x must have shape (..., {columns}) for a pattern of shape {tuple(pattern.shape)}, "
            f"got {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != (rows,):
        raise ValueError(
            f"bias must have shape ({rows},), one per row of the pattern, got {tuple(bias.shape)}"
        )
    if not autocasts(x) or values.dtype.itemsize == 8:
        checks.same_dtype_and_device(list(tensors.values()), list(tensors))
    x = autocast_input(x)
    flat = x if x.dim() == 2 else x.reshape(-1, columns)
    out: Tensor = implementation_for(x, pattern, cuda).packed_linear(flat, values, pattern, bias)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], rows)
