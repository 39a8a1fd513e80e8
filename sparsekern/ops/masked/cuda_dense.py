"""Masked products by dense ones on a GPU: fused with the mask by Triton, or torch's.

With torch's the masked weight is written out; which is faster is modelled in :mod:`.triton.choice`.
The first of the tensors of a pattern, its mask, is all that is read of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import dispatch, native
from ..launching import where
from ..registry import DTYPE_CODES
from .triton import choice


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, pattern: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensor]:
    """``x (W⊙M)ᵀ + b`` for x of shape (batch, columns); nothing is kept for the gradient."""
    if choice.here("forward", x, weight, bias=bias is not None):
        return _fused().forward(x, weight, bias, _mask(weight, pattern)), x.new_empty(0)
    shift = None if bias is None else bias.to(x.dtype)
    masked = masked_copy(weight, pattern, x.dtype)
    return torch.nn.functional.linear(x, masked, shift), x.new_empty(0)


def input_grad(grad: Tensor, weight: Tensor, kept: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """``grad (W⊙M)``."""
    if choice.here("input", grad, weight):
        return _fused().input_grad(grad, weight, _mask(weight, pattern))  # type: ignore[no-any-return]
    return grad @ masked_copy(weight, pattern, grad.dtype)


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """``M⊙(gradᵀ x)``, dense, in the dtype of the weight."""
    mask = _mask(weight, pattern)
    if choice.here("weight", x, weight):
        return _fused().weight_grad(grad, x, mask, weight.dtype)  # type: ignore[no-any-return]
    product = _torch_product(grad, x, weight)
    if not dispatch.runs_cuda_kernels(product.device):
        return torch.where(mask, product, product.new_zeros(()), out=product)
    native.cuda().apply_mask(
        where(product),
        mask.data_ptr(),
        product.numel(),
        product.data_ptr(),
        DTYPE_CODES[product.dtype],
    )
    return product


def straight_through_grad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``gradᵀ x``, as if there were no mask, in the dtype of the weight."""
    if choice.here("weight", x, weight, masked=False):
        return _fused().weight_grad(grad, x, None, weight.dtype)  # type: ignore[no-any-return]
    return _torch_product(grad, x, weight)


def masked_copy(weight: Tensor, pattern: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The weight as (rows, columns), zeros where the mask is False, whatever lies there."""
    zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
    return torch.where(_mask(weight, pattern), weight, zero).to(dtype).flatten(1)


def _mask(weight: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    return pattern[0].view(weight.shape)  # a pointwise convolution's has two dimensions more


def _torch_product(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(grad.t(), x).to(weight.dtype).view(weight.shape)


def _fused() -> Any:
    """The calls of the Triton kernels; imports Triton."""
    from .triton import calls

    return calls
