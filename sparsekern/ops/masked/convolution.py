"""Convolutions with masked weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..registry import back_end
from . import choice, cpu, reference
from .linear import WEIGHT_GRADS, autocast_input, check_types, check_weight, mask_of
from .pattern import SparsityPattern

_Size = int | tuple[int, ...]


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

    Weights are masked and convolved densely, which costs no more than the dense layer, except
    pointwise convolutions of channels-last images: those are products, which skip the weights that
    are not kept where that is faster.

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
        ValueError: for shapes or devices that do not fit.
        RuntimeError: as ``conv2d`` for a stride, padding, dilation or groups that do not fit.
    """
    if weight_grad not in WEIGHT_GRADS:
        raise ValueError(f'weight_grad must be "masked" or "dense", got {weight_grad!r}')
    checks.floating_tensor(x, "x")
    checks.floating_tensor(weight, "weight")
    if weight.dim() != 4:
        raise ValueError(
            f"weight must have shape (out, in / groups, kh, kw), got {tuple(weight.shape)}"
        )
    channels = weight.shape[1] * groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(
            f"x must have shape (N, {channels}, H, W) or ({channels}, H, W) for a weight of shape "
            f"{tuple(weight.shape)} in {groups} groups, got {tuple(x.shape)}"
        )
    check_weight(weight, mask, bias)
    x = autocast_input(x)
    check_types(x, weight, bias)
    if (
        isinstance(mask, SparsityPattern)
        and groups == 1
        and _is_pointwise(weight, stride, padding)
        and _is_sparse(x, mask)
    ):
        return _pointwise(x, weight, mask, bias, weight_grad)
    masked = reference.masked_weight(weight, mask_of(mask), weight_grad).to(x.dtype)
    shift = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, masked, shift, stride, padding, dilation, groups)


def _is_pointwise(weight: Tensor, stride: _Size, padding: str | _Size) -> bool:
    return (
        weight.shape[2:] == (1, 1)
        and (stride == 1 or stride == (1, 1))
        and (isinstance(padding, str) or padding == 0 or padding == (0, 0))
    )


def _is_sparse(x: Tensor, pattern: SparsityPattern) -> bool:
    """Whether pixels are rows of adjacent channels, and a product with them is faster sparse."""
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if not pattern.is_prepared or back_end(x.device, reference, cpu) is reference:
        return False
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return choice.here("forward", pixels, pattern.rows, pattern.columns, pattern.nnz, x.dtype)


def _pointwise(
    x: Tensor, weight: Tensor, pattern: SparsityPattern, bias: Tensor | None, weight_grad: str
) -> Tensor:
    images, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    out = cpu.masked_linear(pixels, weight.flatten(1), pattern, bias, weight_grad)
    return out.view(images, height, width, -1).permute(0, 3, 1, 2)
