"""Masked products on the compiled core: the entry points and their gradients.

A gradient is an operator of its own, computed once: differentiating it again is refused.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..registry import are_plain, needs_grad, only_needed, run, run_grad
from . import calls, choice, conv_calls, given, registration  # noqa: F401  operators exist
from .pattern import Prepared, SparsityPattern

_FAMILY = "masked"
# Stride, padding, dilation (of rows and columns), groups.
Geometry: TypeAlias = tuple[list[int], list[int], list[int], int]
# Kept weights, and what Structure has: a tuple that autograd takes as it is.
Kept: TypeAlias = tuple[int, int, int, int]


def masked_linear(
    x: Tensor, weight: Tensor, pattern: SparsityPattern, bias: Tensor | None, weight_grad: str
) -> Tensor:
    """See :func:`sparsekern.masked_linear`; arguments are checked, x is (batch, columns)."""
    inputs = [x, weight] if bias is None else [x, weight, bias]
    straight_through = weight_grad == "dense"
    if torch.compiler.is_compiling() or not are_plain(inputs):
        if needs_grad(inputs):
            return _Linear.apply(  # type: ignore[no-any-return]
                x, weight, bias, straight_through, _kept(pattern), None, *pattern.tensors
            )
        sparse = _by_entries(x, weight.shape[0], _kept(pattern))[0]
        return run("masked_linear", x, weight, bias, pattern.tensors, sparse, False)[0]  # type: ignore[no-any-return]
    prepared = pattern.prepared
    if needs_grad(inputs):
        return _Linear.apply(  # type: ignore[no-any-return]
            x, weight, bias, straight_through, prepared.kept, prepared, pattern.mask
        )
    sparse = _by_entries(x, weight.shape[0], prepared.kept)[0]
    tensors, core, _ = prepared
    return calls.masked_linear(x, weight, bias, tensors, sparse, False, core)[0]


def packed_linear(
    x: Tensor, values: Tensor, pattern: SparsityPattern, bias: Tensor | None
) -> Tensor:
    """See :func:`.packed_linear.packed_linear`; arguments are checked, x is (batch, columns)."""
    inputs = [x, values] if bias is None else [x, values, bias]
    along = x.stride(0) == 1 != x.stride(1) and min(x.shape) > 1
    if torch.compiler.is_compiling() or not are_plain(inputs):
        kept = _kept(pattern)
        if needs_grad(inputs):
            return _Packed.apply(x, values, bias, along, kept, None, *pattern.tensors)  # type: ignore[no-any-return]
        sparse = _by_entries(x, pattern.rows, kept)[0]
        return run("masked_given_linear", x, values, bias, pattern.tensors, sparse, along)  # type: ignore[no-any-return]
    prepared = pattern.prepared
    if needs_grad(inputs):
        return _Packed.apply(x, values, bias, along, prepared.kept, prepared, pattern.mask)  # type: ignore[no-any-return]
    sparse = _by_entries(x, pattern.rows, prepared.kept)[0]
    return given.linear(x, values, bias, prepared.tensors, sparse, along, prepared.core)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    pattern: SparsityPattern,
    bias: Tensor | None,
    geometry: Geometry,
    weight_grad: str,
) -> Tensor:
    """See :func:`sparsekern.masked_conv2d`; arguments are checked, x is (N, C, H, W)."""
    inputs = [x, weight] if bias is None else [x, weight, bias]
    if needs_grad(inputs):
        return _Conv.apply(  # type: ignore[no-any-return]
            x, weight, bias, geometry, weight_grad == "dense", pattern.nnz, *pattern.tensors
        )
    sparse = convolves_sparsely("forward", x, weight, geometry, pattern.nnz)
    return run(  # type: ignore[no-any-return]
        "masked_conv2d", x, weight, bias, pattern.tensors, *geometry, sparse, False
    )[0]


def spmm(pattern: SparsityPattern, values: Tensor, b: Tensor, *, family: str = _FAMILY) -> Tensor:
    """See :func:`sparsekern.spmm`; arguments are checked, b is (columns, d).

    The operators are those of a family: ``"masked"``, or another that follows its schemas.
    """
    inputs = [values, b]
    if family == _FAMILY and not torch.compiler.is_compiling() and are_plain(inputs):
        prepared = pattern.prepared
        if needs_grad(inputs):
            return _Spmm.apply(family, values, b, prepared, pattern.mask)  # type: ignore[no-any-return]
        return given.spmm(values, b, prepared.tensors, prepared.core)
    if needs_grad(inputs):
        return _Spmm.apply(family, values, b, None, *pattern.trimmed_tensors)  # type: ignore[no-any-return]
    return run(f"{family}_spmm", values, b, pattern.trimmed_tensors)  # type: ignore[no-any-return]


def sddmm(a: Tensor, b: Tensor, pattern: SparsityPattern, *, family: str = _FAMILY) -> Tensor:
    """See :func:`sparsekern.sddmm`; arguments are checked. The family is as in :func:`spmm`."""
    if needs_grad([a, b]):
        return _Sddmm.apply(family, a, b, *pattern.trimmed_tensors)  # type: ignore[no-any-return]
    return run(f"{family}_sddmm", a, b, pattern.trimmed_tensors)  # type: ignore[no-any-return]


def _kept(pattern: SparsityPattern) -> Kept:
    return pattern.nnz, *pattern.structure


def _by_entries(x: Tensor, rows: int, kept: Kept) -> tuple[bool, bool, bool]:
    """Whether the product, the gradient of x and that of the weight go by kept weights."""
    batch, columns = x.shape
    return choice.all_here(batch, rows, columns, kept, x.dtype)


def convolves_sparsely(part: str, x: Tensor, weight: Tensor, geometry: Geometry, nnz: int) -> bool:
    """Whether a part of a convolution goes by kept weights."""
    stride, padding, dilation, _ = geometry
    size = conv_calls.output_size(x.shape, weight.shape, stride, padding, dilation)
    return choice.convolves_sparsely(
        part,
        list(x.shape),
        list(weight.shape),
        list(size),
        nnz,
        x.dtype,
        conv_calls.is_channels_last(x),
    )


class _Linear(torch.autograd.Function):
    # ``pattern`` is what operators are given of it where they are traced. In eager mode that is in
    # ``prepared``, for autograd takes its time with every tensor, and ``pattern`` is the mask
    # alone: saved, so that a change of it before the backward pass is noticed.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        straight_through: bool,
        kept: Kept,
        prepared: Prepared | None,
        *pattern: Tensor,
    ) -> Tensor:
        sparse, *gradients_sparse = _by_entries(x, weight.shape[0], kept)
        keep = sparse and ctx.needs_input_grad[0]
        if prepared is None:
            out, values = run("masked_linear", x, weight, bias, list(pattern), sparse, keep)
        else:
            tensors, core, _ = prepared
            out, values = calls.masked_linear(x, weight, bias, tensors, sparse, keep, core)
        ctx.save_for_backward(x, weight, values, *pattern)
        ctx.how, ctx.prepared = (straight_through, *gradients_sparse), prepared
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, values, *pattern = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        straight_through, sparse_input, sparse_weight = ctx.how
        how = (needs, straight_through, sparse_input, sparse_weight)
        rest = (None, None, None, *(None for _ in pattern))
        grad, prepared = grads[0], ctx.prepared
        if prepared is not None:
            pattern = prepared.tensors
            if not torch.is_grad_enabled() and are_plain(grads):
                return *calls.masked_linear_grad(
                    grad, x, weight, values, pattern, *how, prepared.core
                ), *rest
        values = grad.new_empty(0) if values is None else values
        gradients = run_grad(
            _FAMILY, "masked_linear_grad", grad, x, weight, values, pattern, list(needs), *how[1:]
        )
        return *only_needed(gradients, needs), *rest


class _Packed(torch.autograd.Function):
    # ``prepared`` and ``pattern`` are as in _Linear.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        along: bool,
        kept: Kept,
        prepared: Prepared | None,
        *pattern: Tensor,
    ) -> Tensor:
        rows = pattern[0].shape[0]
        ctx.save_for_backward(x, values, *pattern)
        sparse, *of_gradients = _by_entries(x, rows, kept)
        ctx.how, ctx.prepared = (*of_gradients, along), prepared
        if prepared is not None:
            return given.linear(x, values, bias, prepared.tensors, sparse, along, prepared.core)
        return run("masked_given_linear", x, values, bias, list(pattern), sparse, along)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, values, *pattern = ctx.saved_tensors
        needs, (grad,), prepared = list(ctx.needs_input_grad[:3]), grads, ctx.prepared
        sparse_input, sparse_weight, along = ctx.how
        how = (needs, sparse_input, sparse_weight, along)
        rest = (None, None, None, *(None for _ in pattern))
        if prepared is not None:
            pattern = prepared.tensors
            if not torch.is_grad_enabled() and are_plain(grads):
                return *given.linear_grad(grad, x, values, pattern, *how, prepared.core), *rest
        name = "masked_given_linear_grad"
        gradients = run_grad(_FAMILY, name, grad, x, values, pattern, *how)
        return *only_needed(gradients, needs), *rest


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        straight_through: bool,
        nnz: int,
        *pattern: Tensor,
    ) -> Tensor:
        sparse = convolves_sparsely("forward", x, weight, geometry, nnz)
        keep = sparse and ctx.needs_input_grad[0]
        out, values = run("masked_conv2d", x, weight, bias, list(pattern), *geometry, sparse, keep)
        ctx.save_for_backward(x, weight, values, *pattern)
        ctx.geometry, ctx.straight_through, ctx.nnz = geometry, straight_through, nnz
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, values, *pattern = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        gradients = run_grad(
            _FAMILY,
            "masked_conv2d_grad",
            grads[0],
            x,
            weight,
            values,
            pattern,
            *ctx.geometry,
            needs,
            ctx.straight_through,
            convolves_sparsely("input", x, weight, ctx.geometry, ctx.nnz),
            convolves_sparsely("weight", x, weight, ctx.geometry, ctx.nnz),
        )
        return (*only_needed(gradients, needs), None, None, None, *(None for _ in pattern))


class _Spmm(torch.autograd.Function):
    # ``prepared`` and ``pattern`` are as in _Linear.
    @staticmethod
    def forward(
        ctx: Any,
        family: str,
        values: Tensor,
        b: Tensor,
        prepared: Prepared | None,
        *pattern: Tensor,
    ) -> Tensor:
        ctx.family, ctx.prepared = family, prepared
        ctx.save_for_backward(values, b, *pattern)
        if prepared is not None:
            return given.spmm(values, b, prepared.tensors, prepared.core)
        return run(f"{family}_spmm", values, b, list(pattern))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values, b, *pattern = ctx.saved_tensors
        grad, prepared = grads[0], ctx.prepared
        needs = list(ctx.needs_input_grad[1:3])
        rest = (None, *(None for _ in pattern))
        if prepared is not None:
            pattern = prepared.tensors
            if not torch.is_grad_enabled() and are_plain(grads):
                return None, *given.spmm_grad(grad, values, b, pattern, needs, prepared.core), *rest
        name = f"{ctx.family}_spmm_grad"
        gradients = run_grad(ctx.family, name, grad, values, b, pattern, needs)
        return (None, *only_needed(gradients, needs), *rest)


class _Sddmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, family: str, a: Tensor, b: Tensor, *pattern: Tensor) -> Tensor:
        ctx.family = family
        ctx.save_for_backward(a, b, *pattern)
        return run(f"{family}_sddmm", a, b, list(pattern))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, b, *pattern = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[1:3])
        gradients = run_grad(ctx.family, f"{ctx.family}_sddmm_grad", grads[0], a, b, pattern, needs)
        return (None, *only_needed(gradients, needs), *(None for _ in pattern))
