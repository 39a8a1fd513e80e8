"""Masked linear layers by dense products on a GPU without CUDA kernels, fused with the mask.

The operators take the mask alone: which weights it keeps is not looked at. Importing this imports
no Triton: the first call does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import precision
from ...registry import needs_grad, only_needed, register, run, run_grad
from .. import cuda_dense

_FAMILY = "masked_triton"
_DEVICES = ("CUDA", "XPU", "CPU")


def masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, weight_grad: str
) -> Tensor:
    """See :func:`sparsekern.masked_linear`; arguments are checked, x is (batch, columns)."""
    mask = mask.contiguous()
    if needs_grad([x, weight] if bias is None else [x, weight, bias]):
        return _Linear.apply(x, weight, bias, weight_grad == "dense", mask)  # type: ignore[no-any-return]
    return run(f"{_FAMILY}_linear", x, weight, bias, mask)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        straight_through: bool,
        mask: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.straight_through = straight_through
        return run(f"{_FAMILY}_linear", x, weight, bias, mask)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, mask = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        name = f"{_FAMILY}_linear_grad"
        rest = (x, weight, mask, needs, ctx.straight_through)
        gradients = run_grad(_FAMILY, name, grads[0], *rest)
        return (*only_needed(gradients, needs), None, None)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    with precision.without_autocast(x):
        return cuda_dense.forward(x, weight, bias, [mask], False)[0]


def _linear_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    needs: Sequence[bool],
    straight_through: bool,
) -> list[Tensor]:
    results = [grad.new_empty(0), weight.new_empty(0), grad.new_empty(0)]
    with precision.without_autocast(grad):
        if needs[0]:
            results[0] = cuda_dense.input_grad(grad, weight, grad, [mask])
        if needs[1] and straight_through:
            results[1] = cuda_dense.straight_through_grad(grad, x, weight)
        elif needs[1]:
            results[1] = cuda_dense.weight_grad(grad, x, weight, [mask])
        if needs[2]:
            results[2] = grad.sum(dim=0)
    return results


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _linear_grad_fake(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Sequence[bool], _: bool
) -> list[Tensor]:
    return [
        x.new_empty(x.shape if needs[0] else (0,)),
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        if needs[1]
        else weight.new_empty(0),
        grad.new_empty(grad.shape[1] if needs[2] else 0),
    ]


register(
    f"{_FAMILY}_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor mask) -> Tensor",
    _linear,
    _linear_fake,
    devices=_DEVICES,
)
register(
    f"{_FAMILY}_linear_grad",
    "(Tensor grad, Tensor x, Tensor weight, Tensor mask, bool[] needs, bool straight_through)"
    " -> Tensor[]",
    _linear_grad,
    _linear_grad_fake,
    devices=_DEVICES,
)
