"""Masked products in plain PyTorch: the definition, the oracle, and the fallback everywhere.

Weights are masked by selection and not by multiplication: 0 times NaN is NaN.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .pattern import SparsityPattern


class _StraightThrough(torch.autograd.Function):
    """Masks forward, and passes the gradient on as it is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class _StraightThroughForwardMode(_StraightThrough):
    """The same with forward-mode derivatives, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].view_as(tangents[0])


def masked_weight(weight: Tensor, mask: Tensor, weight_grad: str) -> Tensor:
    """``weight`` where the mask is True, 0 elsewhere; its gradient masked too, or dense."""
    if weight_grad == "dense":
        if torch.compiler.is_compiling():
            return _StraightThrough.apply(weight, mask)  # type: ignore[no-any-return]
        return _StraightThroughForwardMode.apply(weight, mask)  # type: ignore[no-any-return]
    return torch.where(mask, weight, 0)


def masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, weight_grad: str
) -> Tensor:
    """See :func:`sparsekern.masked_linear`; arguments are checked."""
    return F.linear(x, masked_weight(weight, mask, weight_grad), bias)


def packed_linear(
    x: Tensor, values: Tensor, pattern: SparsityPattern, bias: Tensor | None
) -> Tensor:
    """See :func:`.packed_linear.packed_linear`; arguments are checked."""
    weight = pattern.scatter(values).view(pattern.rows, pattern.columns)
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def spmm(pattern: SparsityPattern, values: Tensor, b: Tensor) -> Tensor:
    """See :func:`sparsekern.spmm`; arguments are checked."""
    return pattern.scatter(values).view(pattern.rows, pattern.columns) @ b


def sddmm(a: Tensor, b: Tensor, pattern: SparsityPattern) -> Tensor:
    """See :func:`sparsekern.sddmm`; arguments are checked."""
    return (a @ b).masked_select(pattern.mask.view(pattern.rows, pattern.columns))
