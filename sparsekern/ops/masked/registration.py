"""The compiled masked operators as torch.library sees them: schemas and fake kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..registry import register
from . import calls, conv_calls, given


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    sparse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape[0], weight.shape[0])
    if not (sparse and keep):
        return out, x.new_empty(0)
    return out, x.new_empty(pattern[2].shape[0], dtype=accumulation_dtype(x.dtype))


def _linear_grad_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    *_: Any,
) -> list[Tensor]:
    return [
        x.new_empty(x.shape if needs[0] else (0,)),
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        if needs[1]
        else grad.new_empty(0),
        grad.new_empty(grad.shape[1] if needs[2] else 0),
    ]


def _conv_fake(
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
    out = conv_calls.empty_output(x, weight, stride, padding, dilation)
    if not (sparse and keep):
        return out, x.new_empty(0)
    return out, x.new_empty(pattern[2].shape[0], dtype=accumulation_dtype(x.dtype))


def _conv_grad_fake(
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
    *_: Any,
) -> list[Tensor]:
    return [
        conv_calls.empty_input_grad(x) if needs[0] else grad.new_empty(0),
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        if needs[1]
        else grad.new_empty(0),
        grad.new_empty(grad.shape[1] if needs[2] else 0),
    ]


def _given_linear_fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    sparse: bool,
    along: bool,
) -> Tensor:
    batch, rows = x.shape[0], pattern[1].shape[0] - 1
    return x.new_empty(rows, batch).t() if along else x.new_empty(batch, rows)


def _given_linear_grad_fake(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    sparse_input: bool,
    sparse_weight: bool,
    along: bool,
) -> list[Tensor]:
    x_grad = x.new_empty(x.shape[1], x.shape[0]).t() if along else x.new_empty(x.shape)
    return [
        x_grad if needs[0] else grad.new_empty(0),
        torch.empty_like(values) if needs[1] else grad.new_empty(0),
        grad.new_empty(grad.shape[1] if needs[2] else 0),
    ]


def _spmm_fake(values: Tensor, b: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    return b.new_empty(pattern[1].shape[0] - 1, b.shape[1])


def _spmm_grad_fake(
    grad: Tensor, values: Tensor, b: Tensor, pattern: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    return [
        values.new_empty(values.shape[0] if needs[0] else 0),
        b.new_empty(b.shape if needs[1] else (0,)),
    ]


def _sddmm_fake(a: Tensor, b: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    return a.new_empty(pattern[2].shape[0])


def _sddmm_grad_fake(
    grad: Tensor, a: Tensor, b: Tensor, pattern: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    b_grad = b.new_empty(b.shape[1], b.shape[0]).t() if needs[1] else b.new_empty(0)
    return [a.new_empty(a.shape if needs[0] else (0,)), b_grad]


def _linear(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out, values = calls.masked_linear(x, *rest)
    return out, x.new_empty(0) if values is None else values


def _whole(gradients: Callable[..., list[Tensor | None]]) -> Callable[..., list[Tensor]]:
    """A function's gradients, as operators return them: empty where not needed."""

    def all_of(grad: Tensor, *rest: Any) -> list[Tensor]:
        found = gradients(grad, *rest)
        return [grad.new_empty(0) if gradient is None else gradient for gradient in found]

    return all_of


register(
    "masked_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor[] pattern, bool sparse, bool keep)"
    " -> (Tensor, Tensor)",
    _linear,
    _linear_fake,
)
register(
    "masked_linear_grad",
    "(Tensor grad, Tensor x, Tensor weight, Tensor values, Tensor[] pattern, bool[] needs,"
    " bool straight_through, bool sparse_input, bool sparse_weight) -> Tensor[]",
    _whole(calls.masked_linear_grad),
    _linear_grad_fake,
)
register(
    "masked_given_linear",
    "(Tensor x, Tensor values, Tensor? bias, Tensor[] pattern, bool sparse, bool along) -> Tensor",
    given.linear,
    _given_linear_fake,
)
register(
    "masked_given_linear_grad",
    "(Tensor grad, Tensor x, Tensor values, Tensor[] pattern, bool[] needs, bool sparse_input,"
    " bool sparse_weight, bool along) -> Tensor[]",
    _whole(given.linear_grad),
    _given_linear_grad_fake,
)
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
register(
    "masked_conv2d",
    f"(Tensor x, Tensor weight, Tensor? bias, Tensor[] pattern, {_GEOMETRY}, bool sparse,"
    " bool keep) -> (Tensor, Tensor)",
    conv_calls.masked_conv2d,
    _conv_fake,
)
register(
    "masked_conv2d_grad",
    "(Tensor grad, Tensor x, Tensor weight, Tensor values, Tensor[] pattern,"
    f" {_GEOMETRY}, bool[] needs, bool straight_through, bool sparse_input,"
    " bool sparse_weight) -> Tensor[]",
    conv_calls.masked_conv2d_grad,
    _conv_grad_fake,
)
# Schemas and fake kernels that the operators on CUDA kernels follow too, by the end of their names.
SCHEMAS = {
    "spmm": "(Tensor values, Tensor b, Tensor[] pattern) -> Tensor",
    "spmm_grad": "(Tensor grad, Tensor values, Tensor b, Tensor[] pattern, bool[] needs)"
    " -> Tensor[]",
    "sddmm": "(Tensor a, Tensor b, Tensor[] pattern) -> Tensor",
    "sddmm_grad": "(Tensor grad, Tensor a, Tensor b, Tensor[] pattern, bool[] needs) -> Tensor[]",
}
FAKES: dict[str, Callable[..., Any]] = {
    "spmm": _spmm_fake,
    "spmm_grad": _spmm_grad_fake,
    "sddmm": _sddmm_fake,
    "sddmm_grad": _sddmm_grad_fake,
}
_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "spmm": given.spmm,
    "spmm_grad": _whole(given.spmm_grad),
    "sddmm": given.sddmm,
    "sddmm_grad": _whole(given.sddmm_grad),
}
for _name, _schema in SCHEMAS.items():
    register(f"masked_{_name}", _schema, _IMPLEMENTATIONS[_name], FAKES[_name])
