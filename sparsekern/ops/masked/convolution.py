"""Convolutions with masked weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from . import choice, conv_calls, cpu, cuda, cuda_choice, reference
from .linear import (
    as_pattern,
    autocast_input,
    check_types,
    check_weight,
    check_weight_grad,
    implementation_for,
    mask_of,
)
from .pattern import SparsityPattern

_Size = int | tuple[int, ...]
_INT32_MAX = 2**31 - 1


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | SparsityPattern,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: str | _Size = 0,
    dilation: _Size = 1,
    groups: int = 1,
    *,
    weight_grad: str = "masked",
) -> Tensor:
    """The convolution of x with W⊙M, for a dense weight W and a mask M.

    By kept weights where that is faster, by torch's convolution of the masked weight elsewhere;
    forward and each gradient are decided on their own. The result has the memory format of x. On a
    GPU kept weights are taken for 1 x 1 kernels on channels-last images.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16.
        weight: ``(out, C / groups, kh, kw)``, of the dtype and device of x.
        mask: bool, of the weight's shape, or a :class:`SparsityPattern`.
        bias: ``(out,)`` or None.
        stride: as in ``torch.nn.functional.conv2d``.
        padding: as there.
        dilation: as there.
        groups: as there.
        weight_grad: as in :func:`masked_linear`.

    Returns:
        As ``conv2d`` does. Differentiable in x, weight and bias.

    Raises:
        TypeError: as in :func:`masked_linear`.
        ValueError: for shapes, devices or groups that do not fit.
        RuntimeError: as ``conv2d`` for a stride, padding or dilation that does not fit.
    """
    check_weight_grad(weight_grad)
    checks.floating_tensor(x, "x")
    checks.floating_tensor(weight, "weight")
    if weight.dim() != 4:
        raise ValueError(
            f"weight must have shape (out, in / groups, kh, kw), got {tuple(weight.shape)}"
        )
    if checks.whole_number(groups, "groups") < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    channels = weight.shape[1] * groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(
            f"x must have shape (N, {channels}, H, W) or ({channels}, H, W) for a weight of shape "
            f"{tuple(weight.shape)} in {groups} groups, got {tuple(x.shape)}"
        )
    check_weight(weight, mask, bias)
    x = autocast_input(x)
    check_types(x, weight, bias)
    geometry = _geometry(x, weight, stride, padding, dilation, groups)
    images = x if x.dim() == 4 else x[None]
    implementation = reference if geometry is None else implementation_for(x, mask, cuda)
    if geometry is None or (
        implementation is cuda and not _is_product_on_gpu(images, weight, mask, geometry)
    ):
        implementation = reference
    if geometry is None or implementation is reference:
        masked = reference.masked_weight(weight, mask_of(mask), weight_grad).to(x.dtype)
        shift = None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, masked, shift, stride, padding, dilation, groups)
    if padding == "same" and any(_uneven(geometry, weight)):
        bottom, right = _uneven(geometry, weight)
        images = F.pad(images, (0, right, 0, bottom))
    pattern = as_pattern(mask)
    if implementation is cuda or (
        _is_product(images, weight, geometry) and _is_sparse_product(images, pattern)
    ):
        out = _pointwise(images, weight, pattern, bias, weight_grad, implementation)
    else:
        out = cpu.masked_conv2d(images, weight, pattern, bias, geometry, weight_grad)
    return out if x.dim() == 4 else out[0]


def algorithms(
    x: Tensor,
    weight: Tensor,
    pattern: SparsityPattern,
    stride: _Size = 1,
    padding: str | _Size = 0,
    dilation: _Size = 1,
    groups: int = 1,
) -> tuple[str, str, str]:
    """What :func:`masked_conv2d` takes: forward, for the gradient of x and that of the weight.

    Returns:
        ``"dense"`` or ``"sparse"`` for each, on the compiled core; ``"dense"`` or
        ``"unstructured"`` where CUDA kernels take the forward pass; ``"reference"`` elsewhere.
    """
    geometry = _geometry(x, weight, stride, padding, dilation, groups)
    implementation = reference if geometry is None else implementation_for(x, pattern, cuda)
    if geometry is None or implementation is reference:
        return ("reference",) * 3
    images = x if x.dim() == 4 else x[None]
    if implementation is cuda:
        if not _is_product_on_gpu(images, weight, pattern, geometry):
            return ("reference",) * 3
        pixels, nnz = _pixels(images), pattern.expected_nnz
        forward, of_input, of_weight = (
            cuda_choice.here(part, pixels, weight, nnz) for part in choice.PARTS
        )
        return forward, of_input, of_weight
    if _is_product(images, weight, geometry) and _is_sparse_product(images, pattern):
        found = [_is_sparse_product(images, pattern, part) for part in choice.PARTS]
    else:
        found = [
            cpu.convolves_sparsely(part, images, weight, geometry, pattern.nnz)
            for part in choice.PARTS
        ]
    forward, of_input, of_weight = ("sparse" if sparse else "dense" for sparse in found)
    return forward, of_input, of_weight


def _geometry(
    x: Tensor, weight: Tensor, stride: _Size, padding: str | _Size, dilation: _Size, groups: int
) -> cpu.Geometry | None:
    """Stride, padding, dilation and groups in full; None where torch is to say what is wrong."""
    steps, holes = _pair(stride), _pair(dilation)
    if steps is None or holes is None or min(*steps, *holes, groups) < 1:
        return None
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and steps != [1, 1]):
            return None
        borders = [
            holes[i] * (weight.shape[i + 2] - 1) // 2 if padding == "same" else 0 for i in (0, 1)
        ]
    else:
        found = _pair(padding)
        if found is None or min(found) < 0:
            return None
        borders = found
    size = conv_calls.output_size((1, *x.shape[-3:]), weight.shape, steps, borders, holes)
    if weight.shape[0] % groups or weight.numel() == 0 or min(size) < 1:
        return None
    return steps, borders, holes, groups


def _pair(value: _Size) -> list[int] | None:
    """Of rows and columns; None for anything but one or two integers."""
    numbers = list(value) if isinstance(value, (tuple, list)) else [value]
    if not all(isinstance(number, int) and abs(number) < _INT32_MAX for number in numbers):
        return None
    return numbers * 2 if len(numbers) == 1 else numbers if len(numbers) == 2 else None


def _uneven(geometry: cpu.Geometry, weight: Tensor) -> tuple[int, int]:
    """What padding "same" adds at the bottom and on the right beyond the other sides."""
    _, borders, holes, _ = geometry
    bottom, right = (holes[i] * (weight.shape[i + 2] - 1) - 2 * borders[i] for i in (0, 1))
    return bottom, right


def _is_product(x: Tensor, weight: Tensor, geometry: cpu.Geometry) -> bool:
    """Whether pixels are rows of adjacent channels, to be multiplied with a matrix."""
    steps, borders, _, groups = geometry
    return (
        groups == 1
        and weight.shape[2:] == (1, 1)
        and steps == [1, 1]
        and borders == [0, 0]
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_sparse_product(x: Tensor, pattern: SparsityPattern, part: str = "forward") -> bool:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    in_blocks = choice.in_blocks(part, pattern.nnz, pattern.structure)
    sizes = (pixels, pattern.rows, pattern.columns, pattern.nnz)
    return choice.here(part, *sizes, x.dtype, in_blocks)


def _is_product_on_gpu(
    x: Tensor, weight: Tensor, mask: Tensor | SparsityPattern, geometry: cpu.Geometry
) -> bool:
    """Whether a GPU is to take kept weights: what they do not win is cuDNN's."""
    if not _is_product(x, weight, geometry):
        return False
    nnz = as_pattern(mask).expected_nnz
    return cuda_choice.here("forward", _pixels(x), weight, nnz) != "dense"


def _pixels(x: Tensor) -> Tensor:
    """The pixels of channels-last images, a row of channels each: no copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _pointwise(
    x: Tensor,
    weight: Tensor,
    pattern: SparsityPattern,
    bias: Tensor | None,
    weight_grad: str,
    implementation: Any,
) -> Tensor:
    images, _, height, width = x.shape
    out: Tensor = implementation.masked_linear(
        _pixels(x), weight.flatten(1), pattern, bias, weight_grad
    )
    return out.view(images, height, width, -1).permute(0, 3, 1, 2)
