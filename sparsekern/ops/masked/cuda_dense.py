"""Masked products by torch's dense ones on a GPU: the masked weight is written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ..launching import where
from ..registry import DTYPE_CODES


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, pattern: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensor]:
    """``x (W⊙M)ᵀ + b`` for x of shape (batch, columns); nothing is kept for the gradient."""
    shift = None if bias is None else bias.to(x.dtype)
    masked = masked_copy(weight, pattern, x.dtype)
    return torch.nn.functional.linear(x, masked, shift), x.new_empty(0)


def input_grad(grad: Tensor, weight: Tensor, kept: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """``grad (W⊙M)``."""
    return grad @ masked_copy(weight, pattern, grad.dtype)


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """``M⊙(gradᵀ x)``, dense, in the dtype of the weight."""
    product = straight_through_grad(grad, x, weight)
    native.cuda().apply_mask(
        where(product),
        pattern[0].data_ptr(),
        product.numel(),
        product.data_ptr(),
        DTYPE_CODES[product.dtype],
    )
    return product


def straight_through_grad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``gradᵀ x``, as if there were no mask, in the dtype of the weight."""
    return torch.mm(grad.t(), x).to(weight.dtype).view(weight.shape)


def masked_copy(weight: Tensor, pattern: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The weight as (rows, columns), zeros where the mask is False, whatever lies there."""
    mask = pattern[0].view(weight.shape)  # a pointwise convolution's has two dimensions more
    masked = torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
    return masked.to(dtype).flatten(1)
