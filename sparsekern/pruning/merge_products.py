"""The arithmetic of merging: batch norm folded into a layer, and two layers made one.

In float64, rounded once to the layers' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor, nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Layer = nn.Linear | nn.Conv2d


def folded(layer: Layer, norm: BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer with the batch norm behind it, as in evaluation.

    Args:
        layer: ``W``, ``b``.
        norm: with running statistics, or None.

    Returns:
        ``γ/√(σ² + ε) W`` and ``γ/√(σ² + ε) (b - μ) + β``, float64.
    """
    weight = layer.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if layer.bias is not None:
        bias = layer.bias.detach().double()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -scale * norm.running_mean.double()
    if norm.affine:
        gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
        scale, shift = gamma * scale, gamma * shift + beta
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + shift


def padding_of(conv: nn.Conv2d) -> tuple[int, int] | None:
    """A convolution's zero padding on each side; None if it is another, or not symmetric."""
    if isinstance(conv.padding, str):
        if conv.padding == "valid":
            return (0, 0)
        extents = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(extent % 2 for extent in extents):
            return None
        padding = extents[0] // 2, extents[1] // 2
    else:
        padding = conv.padding[0], conv.padding[1]
    return padding if conv.padding_mode == "zeros" or not any(padding) else None


def merged_size(first: Layer, second: Layer) -> int:
    """How many weights the merged layer has."""
    if isinstance(first, nn.Linear) or isinstance(second, nn.Linear):
        return first.weight.shape[1] * second.weight.shape[0]
    _, sizes = _grid(first, second)
    return second.out_channels * first.in_channels * math.prod(sizes)


def merged_linear(weight: Tensor, bias: Tensor, second: nn.Linear) -> nn.Linear:
    """``x -> V (W x + b) + c`` as one layer: ``(V W) x + (V b + c)``."""
    outer = second.weight.detach().double()
    layer = nn.Linear(weight.shape[1], len(outer), device="meta", dtype=second.weight.dtype)
    return _filled(layer, second, outer @ weight, outer @ bias)  # type: ignore[return-value]


def merged_conv2d(first: nn.Conv2d, weight: Tensor, bias: Tensor, second: nn.Conv2d) -> nn.Conv2d:
    """``x -> V * (W * x + b) + c`` as one convolution.

    Exact where the second convolution does not pad, or where the first is 1x1 without padding and
    without a bias, so that what is padded is the same before it and behind.

    Args:
        first: the stride, padding and dilation of W.
        weight: W.
        bias: b.
        second: V and c.
    """
    outer = second.weight.detach().double()
    steps, sizes = _grid(first, second)
    kernel = torch.zeros(len(outer), weight.shape[1], *sizes, dtype=torch.float64)
    kernel = kernel.to(outer.device)
    strides, dilations, inner = first.stride, second.dilation, first.dilation
    for k, j in product(_places(second.kernel_size), _places(first.kernel_size)):
        row, column = (
            (strides[i] * dilations[i] * k[i] + inner[i] * j[i]) // steps[i] for i in (0, 1)
        )
        kernel[:, :, row, column] += outer[:, :, k[0], k[1]] @ weight[:, :, j[0], j[1]]
    own, others = padding_of(first), padding_of(second)
    assert own is not None
    assert others is not None
    layer = nn.Conv2d(
        weight.shape[1],
        len(outer),
        sizes,
        stride=(strides[0] * second.stride[0], strides[1] * second.stride[1]),
        padding=(own[0] + strides[0] * others[0], own[1] + strides[1] * others[1]),
        dilation=steps,
        device="meta",
        dtype=second.weight.dtype,
    )
    shift = outer.sum(dim=(2, 3)) @ bias
    return _filled(layer, second, kernel, shift)  # type: ignore[return-value]


def _grid(first: nn.Conv2d, second: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Dilation and size of the merged kernel: the coarsest grid that holds all its places."""
    steps, sizes = [], []
    for i in (0, 1):
        outer = first.stride[i] * second.dilation[i] * (second.kernel_size[i] - 1)
        inner = first.dilation[i] * (first.kernel_size[i] - 1)
        step = math.gcd(
            first.stride[i] * second.dilation[i] if outer else 0, first.dilation[i] if inner else 0
        )
        steps.append(max(step, 1))
        sizes.append((outer + inner) // steps[i] + 1)
    return (steps[0], steps[1]), (sizes[0], sizes[1])


def _places(size: Iterable[int]) -> list[tuple[int, ...]]:
    return list(product(*map(range, size)))


@torch.no_grad()
def _filled(layer: Layer, second: Layer, weight: Tensor, shift: Tensor) -> Layer:
    bias = shift if second.bias is None else second.bias.double() + shift
    layer.weight = nn.Parameter(weight.to(second.weight.dtype), second.weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(second.weight.dtype), second.weight.requires_grad)
    return layer.train(second.training)
