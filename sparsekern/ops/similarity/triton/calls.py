"""Calls of the Triton kernels: memory for their results, launches, tensors out.

The functions and their arguments are those of :mod:`sparsekern.ops.similarity.calls`, the calls of
the compiled core. Nothing here waits for the device or looks at a value on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...precision import accumulation_dtype
from ..layout import result_shape
from . import plan
from .launches import Call, Quantity, Spec
from .state import State

_CKA = 1


def compare(
    xs: Sequence[Tensor],
    first: int,
    quantity: int,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """HSIC or CKA between layers: the first ``first`` with the others, or (0) all with all.

    Returns:
        The matrix, or for one pair its scalar, and what :func:`compare_grad` needs of it (nothing
        unless ``keep``).
    """
    shape = result_shape(first, len(xs))
    out = xs[0].new_empty(shape, dtype=accumulation_dtype(xs[0].dtype))
    spec = (kernel, parameter0, parameter1, centring, center_features)
    return _forward(xs, spec, Quantity(quantity, first), out, keep)


def compare_grad(
    grad: Tensor,
    xs: Sequence[Tensor],
    state: Tensor,
    needs: Sequence[bool],
    first: int,
    quantity: int,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> list[Tensor]:
    """Gradients of :func:`compare`, one per layer; an empty tensor where ``needs`` is False."""
    spec = (kernel, parameter0, parameter1, centring, center_features)
    return _backward(grad, xs, state, needs, spec, Quantity(quantity, first))


def group_sum(
    xs: Sequence[Tensor],
    sizes: Sequence[int],
    mean: bool,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """CKA summed inside groups of consecutive layers, or its mean over the pairs of one group.

    Returns:
        The scalar, and what :func:`group_sum_grad` needs of it (nothing unless ``keep``).
    """
    out = xs[0].new_empty((), dtype=accumulation_dtype(xs[0].dtype))
    spec = (kernel, parameter0, parameter1, centring, center_features)
    return _forward(xs, spec, _groups(sizes, mean), out, keep)


def group_sum_grad(
    grad: Tensor,
    xs: Sequence[Tensor],
    state: Tensor,
    needs: Sequence[bool],
    sizes: Sequence[int],
    mean: bool,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> list[Tensor]:
    """Gradients of :func:`group_sum`, one per layer; an empty tensor where ``needs`` is False."""
    spec = (kernel, parameter0, parameter1, centring, center_features)
    return _backward(grad, xs, state, needs, spec, _groups(sizes, mean))


def gram(
    x: Tensor,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> tuple[Tensor, Tensor]:
    """One layer's Gram matrix, and what :func:`gram_grad` needs of it."""
    call = Call([x], (kernel, parameter0, parameter1, centring, center_features))
    out = x.new_empty((call.n, call.n), dtype=call.dtype)
    keeps_products = kernel != plan.LINEAR
    state = State.allocate(x, call.sizes.dims, keeps_products)
    products = state.products if keeps_products else out
    with call.guard():
        call.products(call.table([0]), products, state)
        if keeps_products or centring != plan.NO_CENTRING:
            call.write_entries(products, state, out)
    return out, state.memory


def gram_grad(
    grad: Tensor,
    x: Tensor,
    state: Tensor,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> Tensor:
    """The gradient of :func:`gram`."""
    call = Call([x], (kernel, parameter0, parameter1, centring, center_features))
    kept = State.view(state, x, call.sizes.dims, kernel != plan.LINEAR)
    # Centring is its own adjoint: the upstream gradient is centred as a Gram matrix would be. Its
    # sums go to memory of their own, for the state may serve a second backward pass.
    upstream = torch.add(grad, grad.T).mul_(0.5).contiguous()
    sums = State.allocate(x, call.sizes.dims, False)
    gradients = _new_gradients([x], [True])
    with call.guard():
        table = call.table([gradients[0].data_ptr()])
        if centring != plan.NO_CENTRING:
            call.source_sums(table, upstream, sums)
        weights = torch.ones(1, dtype=call.dtype, device=x.device)
        operand = call.operand(upstream, weights, kept, sums, from_grams=False)
        call.gradients(table, operand, kept, gradients)
    return gradients[0]


def _groups(sizes: Sequence[int], mean: bool) -> Quantity:
    groups = tuple(group for group, size in enumerate(sizes) for _ in range(size))
    return Quantity(_CKA, groups=groups, mean=mean)


def _forward(
    xs: Sequence[Tensor], spec: Spec, quantity: Quantity, out: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    call = Call(xs, spec)
    state = State.allocate(xs[0], call.sizes.dims)
    with call.guard():
        table = call.table(quantity.groups or [0] * call.count)
        squares = call.products(table, state.products, state)
        call.inner_products(table, squares, state, quantity, out)
    return out, state.memory if keep else state.memory.new_empty(0)


def _backward(
    grad: Tensor,
    xs: Sequence[Tensor],
    state: Tensor,
    needs: Sequence[bool],
    spec: Spec,
    quantity: Quantity,
) -> list[Tensor]:
    call = Call(xs, spec)
    kept = State.view(state, xs[0], call.sizes.dims)
    gradients = _new_gradients(xs, needs)
    with call.guard():
        addresses = [
            gradient.data_ptr() if needed else 0
            for gradient, needed in zip(gradients, needs, strict=True)
        ]
        table = call.table([*addresses, *quantity.groups])
        weights = call.pair_weights(grad.contiguous(), table, kept, quantity)
        operand = call.operand(kept.products, weights, kept, kept, from_grams=True)
        call.gradients(table, operand, kept, gradients)
    return gradients


def _new_gradients(xs: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [
        torch.empty(x.shape if needed else (0,), dtype=x.dtype, device=x.device)
        for x, needed in zip(xs, needs, strict=True)
    ]
