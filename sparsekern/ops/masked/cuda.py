"""Masked products on the CUDA kernels: the entry points, their gradients, and their operators.

Nothing waits for the device, short of ``spmm`` and ``sddmm`` after a mask was updated: the number
of their values is a shape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..launching import DEVICES
from ..precision import accumulation_dtype
from ..registry import needs_grad, only_needed, register, run, run_grad
from . import cpu, cuda_calls, cuda_choice, registration
from .pattern import SparsityPattern

_FAMILY = "masked_cuda"

spmm = functools.partial(cpu.spmm, family=_FAMILY)
sddmm = functools.partial(cpu.sddmm, family=_FAMILY)


def masked_linear(
    x: Tensor, weight: Tensor, pattern: SparsityPattern, bias: Tensor | None, weight_grad: str
) -> Tensor:
    """See :func:`sparsekern.masked_linear`; arguments are checked, x is (batch, columns)."""
    inputs = [x, weight] if bias is None else [x, weight, bias]
    tensors, nnz = pattern.tensors, pattern.expected_nnz
    if needs_grad(inputs):
        return _Linear.apply(x, weight, bias, weight_grad == "dense", nnz, *tensors)  # type: ignore[no-any-return]
    algorithm = cuda_choice.here("forward", x, weight, nnz)
    return run(f"{_FAMILY}_linear", x, weight, bias, tensors, algorithm, False)[0]  # type: ignore[no-any-return]


def packed_linear(
    x: Tensor, values: Tensor, pattern: SparsityPattern, bias: Tensor | None
) -> Tensor:
    """See :func:`.packed_linear.packed_linear`; arguments are checked, x is (batch, columns)."""
    out = spmm(pattern, values.to(x.dtype), x.t()).t()
    return out if bias is None else out + bias.to(x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        straight_through: bool,
        nnz: int,
        *pattern: Tensor,
    ) -> Tensor:
        algorithm = cuda_choice.here("forward", x, weight, nnz)
        keep = ctx.needs_input_grad[0]
        out, kept = run(f"{_FAMILY}_linear", x, weight, bias, list(pattern), algorithm, keep)
        ctx.save_for_backward(x, weight, kept, *pattern)
        ctx.straight_through, ctx.nnz = straight_through, nnz
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, kept, *pattern = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        gradients = run_grad(
            _FAMILY,
            f"{_FAMILY}_linear_grad",
            grads[0],
            x,
            weight,
            kept,
            pattern,
            needs,
            ctx.straight_through,
            cuda_choice.here("input", x, weight, ctx.nnz),
            cuda_choice.here("weight", x, weight, ctx.nnz),
        )
        return (*only_needed(gradients, needs), None, None, *(None for _ in pattern))


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    algorithm: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape[0], weight.shape[0])
    size = pattern[2].shape[0] if keep and algorithm == "unstructured" else 0
    return out, x.new_empty(size, dtype=accumulation_dtype(x.dtype))


def _linear_grad_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: Tensor,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    *_: Any,
) -> list[Tensor]:
    return [
        x.new_empty(x.shape if needs[0] else (0,)),
        weight.new_empty(weight.shape if needs[1] else (0,)),
        grad.new_empty(grad.shape[1] if needs[2] else 0),
    ]


register(
    f"{_FAMILY}_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor[] pattern, str algorithm, bool keep)"
    " -> (Tensor, Tensor)",
    cuda_calls.masked_linear,
    _linear_fake,
    devices=DEVICES,
)
register(
    f"{_FAMILY}_linear_grad",
    "(Tensor grad, Tensor x, Tensor weight, Tensor kept, Tensor[] pattern, bool[] needs,"
    " bool straight_through, str input_algorithm, str weight_algorithm) -> Tensor[]",
    cuda_calls.masked_linear_grad,
    _linear_grad_fake,
    devices=DEVICES,
)
for _name, _schema in registration.SCHEMAS.items():
    register(
        f"{_FAMILY}_{_name}",
        _schema,
        getattr(cuda_calls, _name),
        registration.FAKES[_name],
        devices=DEVICES,
    )
