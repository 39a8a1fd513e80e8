"""Similarity on the compiled core: the entry points and their gradients.

The gradient is an operator of its own, computed once: differentiating it again is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .calls import DOUBLE_CENTRING, U_CENTRING, Spec
from .kernels import RBF, Cosine, Kernel, Linear, Polynomial
from .registration import run

_CENTRING = {
    None: 0,
    "double": DOUBLE_CENTRING,
    "u": U_CENTRING,
    "biased": DOUBLE_CENTRING,
    "unbiased": U_CENTRING,
}
_HSIC, _CKA = 0, 1
_LINEAR, _RBF, _POLYNOMIAL, _COSINE = range(4)


def hsic_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, kernel: Kernel, estimator: str
) -> Tensor:
    """See :func:`sparsekern.hsic_matrix`; arguments are checked and flattened."""
    return _compare(xs, ys, _HSIC, _spec(kernel, estimator))


def cka_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, kernel: Kernel, estimator: str
) -> Tensor:
    """See :func:`sparsekern.cka_matrix`; arguments are checked and flattened."""
    return _compare(xs, ys, _CKA, _spec(kernel, estimator))


def cka_sum(
    groups: Sequence[Sequence[Tensor]], kernel: Kernel, estimator: str, reduction: str
) -> Tensor:
    """See :func:`sparsekern.cka_sum`; arguments are checked and flattened."""
    xs = [x for group in groups for x in group]
    mean = reduction == "mean"
    sizes = [len(xs)] if mean else [len(group) for group in groups]
    spec = _spec(kernel, estimator)
    if _needs_grad(xs):
        return _Sum.apply(sizes, mean, spec, *xs)  # type: ignore[no-any-return]
    out: Tensor = run("similarity_sum", xs, sizes, mean, *spec, False)[0]
    return out


def gram(x: Tensor, kernel: Kernel, center: str | None) -> Tensor:
    """See :func:`sparsekern.gram`; arguments are checked and flattened."""
    spec = _spec(kernel, center)
    if _needs_grad((x,)):
        return _Gram.apply(spec, x)  # type: ignore[no-any-return]
    out: Tensor = run("similarity_gram", x, *spec)[0]
    return out


def _compare(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, quantity: int, spec: Spec
) -> Tensor:
    first = 0 if ys is None else len(xs)
    layers = [*xs] if ys is None else [*xs, *ys]
    if _needs_grad(layers):
        return _Compare.apply(first, quantity, spec, *layers)  # type: ignore[no-any-return]
    out: Tensor = run("similarity_compare", layers, first, quantity, *spec, False)[0]
    return out


def _spec(kernel: Kernel, centring: str | None) -> Spec:
    code = _CENTRING[centring]
    if isinstance(kernel, Linear):
        return _LINEAR, 0.0, 0.0, code, centring is not None
    if isinstance(kernel, RBF):
        return _RBF, kernel.fraction, kernel.bandwidth or 0.0, code, True
    if isinstance(kernel, Polynomial):
        return _POLYNOMIAL, float(kernel.degree), kernel.c, code, False
    assert isinstance(kernel, Cosine)
    return _COSINE, 0.0, 0.0, code, False


def _needs_grad(xs: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in xs)


class _Once(torch.autograd.Function):
    """Identity on gradients that cannot be differentiated again; says so if anybody tries."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "the gradient of sparsekern's compiled similarity operators cannot be differentiated "
            'again; compute them inside `with sparsekern.backend("reference"):` for that'
        )


def _differentiable_once(grad: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled():  # create_graph=True
        source = grad if grad.requires_grad else grad.detach().requires_grad_()
        return _Once.apply(source, *gradients)  # type: ignore[no-any-return]
    return tuple(gradients)


def _only_needed(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(
        gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)
    )


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: int, quantity: int, spec: Spec, *xs: Tensor) -> Tensor:
        out, state = run("similarity_compare", list(xs), first, quantity, *spec, True)
        ctx.save_for_backward(state, *xs)
        ctx.arguments = (first, quantity, *spec)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, *xs = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[3:])
        gradients = _run_grad("similarity_compare_grad", grads[0], xs, state, needs, ctx.arguments)
        return (None, None, None, *_only_needed(gradients, needs))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: list[int], mean: bool, spec: Spec, *xs: Tensor) -> Tensor:
        out, state = run("similarity_sum", list(xs), sizes, mean, *spec, True)
        ctx.save_for_backward(state, *xs)
        ctx.arguments = (sizes, mean, *spec)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, *xs = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[3:])
        gradients = _run_grad("similarity_sum_grad", grads[0], xs, state, needs, ctx.arguments)
        return (None, None, None, *_only_needed(gradients, needs))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: Spec, x: Tensor) -> Tensor:
        out, state = run("similarity_gram", x, *spec)
        ctx.save_for_backward(state, x)
        ctx.spec = spec
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, x = ctx.saved_tensors
        grad = grads[0]
        with torch.no_grad():
            gradient = run("similarity_gram_grad", grad, x, state, *ctx.spec)
        return None, *_differentiable_once(grad, [gradient])


def _run_grad(
    name: str,
    grad: Tensor,
    xs: Sequence[Tensor],
    state: Tensor,
    needs: list[bool],
    arguments: tuple[Any, ...],
) -> Sequence[Tensor]:
    with torch.no_grad():  # the graph of create_graph=True is _Once's to make
        gradients = run(name, grad, list(xs), state, needs, *arguments)
    return _differentiable_once(grad, gradients)
