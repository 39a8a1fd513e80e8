"""Calls of the compiled masked convolution: memory for its results, addresses in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import native
from .. import precision
from ..memory import contiguous
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES
from . import calls, memory
from .core import core_pattern, gather_values

# Address, dtype, height, width; steps of images, channels, rows, columns; channels adjacent.
PictureTuple: TypeAlias = tuple[int, int, int, int, tuple[int, int, int, int], bool]
_NO_PICTURE: PictureTuple = (0, 0, 0, 0, (0, 0, 0, 0), False)
_NOTHING = torch.empty(0, device="cpu")


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of (N, C, H, W) are adjacent and pixels follow each other."""
    _, channels, _, width = x.shape
    images, channel, row, column = x.stride()
    return (
        channels > 1
        and channel == 1
        and column >= channels
        and row >= column * width
        and images >= row
    )


def output_size(
    x: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the result, as ``torch.nn.functional.conv2d`` has it."""
    height, width = (
        (x[i + 2] + 2 * padding[i] - dilation[i] * (weight[i + 2] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return height, width


def empty_output(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """An uninitialised result, in the memory format of x."""
    size = output_size(x.shape, weight.shape, stride, padding, dilation)
    shape = (x.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


def empty_input_grad(x: Tensor) -> Tensor:
    """An uninitialised gradient of x, in the memory format of x."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def _readable(x: Tensor) -> Tensor:
    """Images as the core reads them: adjacent columns, or adjacent channels."""
    if x.is_neg():
        x = x.resolve_neg()
    return x if is_channels_last(x) or x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _picture(x: Tensor) -> PictureTuple:
    """A readable (N, C, H, W) tensor."""
    last = is_channels_last(x)
    images, channel, row, column = x.stride()
    steps = (images, channel, row, column if last else 1)
    return x.data_ptr(), DTYPE_CODES[x.dtype], x.shape[2], x.shape[3], steps, last


def _shape(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, ...]:
    """The fields of the core's ConvShape."""
    sizes = (*x.shape, weight.shape[0], *y.shape[2:], *weight.shape[2:])
    return (*sizes, *stride, *padding, *dilation, groups)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    sparse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The convolution of x with W⊙M, in the dtype of x.

    Args:
        x: (N, C, H, W).
        weight: (filters, C / groups, kh, kw), of the dtype of x or (autocast) another one.
        bias: (filters,) or None.
        pattern: :attr:`SparsityPattern.tensors`.
        stride: of rows and columns.
        padding: of rows and columns, the same on both sides.
        dilation: of rows and columns.
        groups: of channels.
        sparse: by kept weights, rather than a masked copy and torch's convolution.
        keep: whether the kept values are wanted too.

    Returns:
        The result, and the kept values in row order (nothing unless ``sparse`` and ``keep``).
    """
    options = (tuple(stride), tuple(padding), tuple(dilation), groups)
    if not sparse:
        with precision.without_autocast(x):
            masked = _masked_copy(weight, pattern, x.dtype)
            shift = None if bias is None else bias.to(x.dtype)
            out = torch.nn.functional.conv2d(x, masked, shift, *options)
            return out, x.new_empty(0)
    out = empty_output(x, weight, stride, padding, dilation)
    values = gather_values(calls.rows_of(weight), pattern)
    kept = values if keep else x.new_empty(0)
    dtype = accumulation_dtype(x.dtype)
    shift = _NOTHING if bias is None else contiguous(bias.to(dtype))
    if out.numel() == 0:
        return out, kept
    if x.numel() == 0:
        shown = torch.zeros_like(out) if bias is None else out.copy_(shift.view(1, -1, 1, 1))
        return shown, kept
    x = _readable(x)
    native.cpu().masked_conv(
        core_pattern(pattern),
        dtype == torch.float64,
        _shape(x, weight, out, *options),
        values.data_ptr(),
        _picture(x),
        shift.data_ptr(),
        _picture(out),
        torch.get_num_threads(),
    )
    return out, kept


def masked_conv2d_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: Sequence[Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
    straight_through: bool,
    sparse_input: bool,
    sparse_weight: bool,
) -> list[Tensor]:
    """The gradients of :func:`masked_conv2d` for x, the weight and the bias; empty if not needed.

    Args:
        grad: (N, filters, H', W'), of the result.
        x: as in the forward pass.
        weight: as in the forward pass.
        values: the kept values, or nothing: then they are gathered again.
        pattern: as in the forward pass.
        stride: as in the forward pass.
        padding: as in the forward pass.
        dilation: as in the forward pass.
        groups: as in the forward pass.
        needs: which gradients.
        straight_through: the dense gradient of the weight, as if there were no mask.
        sparse_input: the gradient of x by kept weights.
        sparse_weight: the masked gradient of the weight by kept weights.
    """
    need_x, need_weight, need_bias = needs
    options = (tuple(stride), tuple(padding), tuple(dilation), groups)
    results = [grad.new_empty(0) for _ in needs]
    if need_bias:
        results[2] = grad.sum(dim=(0, 2, 3))
    if grad.numel() == 0 or x.numel() == 0:
        results[0] = torch.zeros_like(x) if need_x else results[0]
        results[1] = weight.new_zeros(weight.shape) if need_weight else results[1]
        return results
    by_entries = [need_x and sparse_input, need_weight and sparse_weight and not straight_through]
    densely = [need_x and not by_entries[0], need_weight and not by_entries[1]]
    if any(densely):
        found = _dense_grad(grad, x, weight, pattern, options, densely, straight_through)
        results = [f if d else r for f, d, r in zip(found, [*densely, False], results, strict=True)]
    if not any(by_entries):
        return results
    dtype = accumulation_dtype(grad.dtype)
    if by_entries[0]:
        results[0] = empty_input_grad(x)
        if not values.numel():
            values = gather_values(calls.rows_of(weight), pattern)
    nnz = pattern[2].shape[0] if by_entries[1] else 0
    values_grad = torch.empty(nnz, dtype=dtype, device="cpu")
    grad, x = _readable(grad), _readable(x)
    if weight.shape[1] == 1 and not is_channels_last(x):
        grad = grad.contiguous()  # channel by channel, as x is read
    native.cpu().masked_conv_gradients(
        core_pattern(pattern),
        dtype == torch.float64,
        _shape(x, weight, grad, *options),
        values.data_ptr(),
        _picture(grad),
        _picture(x),
        _picture(results[0]) if by_entries[0] else _NO_PICTURE,
        values_grad.data_ptr(),
        torch.get_num_threads(),
    )
    if by_entries[1]:
        results[1] = memory.empty(tuple(weight.shape), weight.dtype, pattern[1])
        native.cpu().scatter_values(
            core_pattern(pattern),
            dtype == torch.float64,
            values_grad.data_ptr(),
            (results[1].data_ptr(), DTYPE_CODES[weight.dtype], 0, False),
            torch.get_num_threads(),
        )
    return results


def _dense_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    options: tuple[Any, ...],
    needs: Sequence[bool],
    straight_through: bool,
) -> list[Tensor]:
    """By torch's convolution: the gradients of x and of the weight, each where needed."""
    with precision.without_autocast(grad):
        masked = _masked_copy(weight, pattern, grad.dtype)
        *geometry, groups = options
        x_grad, product, _ = torch.ops.aten.convolution_backward(
            grad, x, masked, None, *geometry, False, (0, 0), groups, (*needs, False)
        )
    if needs[1]:
        product = product if straight_through else calls.masked_copy(product, pattern)
        product = product.to(weight.dtype).reshape(weight.shape).contiguous()
    return [x_grad, product, grad]


def _masked_copy(weight: Tensor, pattern: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return calls.masked_copy(weight, pattern).to(dtype).view(weight.shape)
