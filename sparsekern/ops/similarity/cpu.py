"""Similarity on the compiled core: the entry points and their gradients.

The gradient is an operator of its own, computed once: differentiating it again is refused. The
Triton kernels have the same operators under another family name, and share these entry points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import distinct, needs_grad, only_needed, operator, run, run_grad
from . import registration as _registration  # noqa: F401  (defines the operators)
from .calls import DOUBLE_CENTRING, U_CENTRING, Spec
from .kernels import RBF, Cosine, Kernel, Linear, Polynomial

_CENTRING = {
    None: 0,
    "double": DOUBLE_CENTRING,
    "u": U_CENTRING,
    "biased": DOUBLE_CENTRING,
    "unbiased": U_CENTRING,
}
_HSIC, _CKA = 0, 1
_LINEAR, _RBF, _POLYNOMIAL, _COSINE = range(4)
_FAMILY = "similarity"


def hsic_matrix(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None,
    kernel: Kernel,
    estimator: str,
    family: str = _FAMILY,
) -> Tensor:
    """See :func:`sparsekern.hsic_matrix`; arguments are checked and flattened."""
    return _compare(family, xs, ys, _HSIC, _spec(kernel, estimator))


def cka_matrix(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None,
    kernel: Kernel,
    estimator: str,
    family: str = _FAMILY,
) -> Tensor:
    """See :func:`sparsekern.cka_matrix`; arguments are checked and flattened."""
    return _compare(family, xs, ys, _CKA, _spec(kernel, estimator))


def hsic(x: Tensor, y: Tensor, kernel: Kernel, estimator: str, family: str = _FAMILY) -> Tensor:
    """See :func:`sparsekern.hsic`; arguments are checked and flattened."""
    return _call(family, [x, y], 1, _HSIC, _spec(kernel, estimator))


def cka(x: Tensor, y: Tensor, kernel: Kernel, estimator: str, family: str = _FAMILY) -> Tensor:
    """See :func:`sparsekern.cka`; arguments are checked and flattened."""
    return _call(family, [x, y], 1, _CKA, _spec(kernel, estimator))


def cka_sum(
    groups: Sequence[Sequence[Tensor]],
    kernel: Kernel,
    estimator: str,
    reduction: str,
    family: str = _FAMILY,
) -> Tensor:
    """See :func:`sparsekern.cka_sum`; arguments are checked and flattened."""
    xs = [x for group in groups for x in group]
    mean = reduction == "mean"
    sizes = [len(xs)] if mean else [len(group) for group in groups]
    spec, name = _spec(kernel, estimator), family + "_sum"
    if needs_grad(xs):
        return _Similarity.apply(  # type: ignore[no-any-return]
            name, (sizes, mean, *spec), *distinct(xs)
        )
    out: Tensor = operator(name, xs)(xs, sizes, mean, *spec, False)[0]
    return out


def gram(x: Tensor, kernel: Kernel, center: str | None, family: str = _FAMILY) -> Tensor:
    """See :func:`sparsekern.gram`; arguments are checked and flattened."""
    spec = _spec(kernel, center)
    if needs_grad((x,)):
        return _Gram.apply(family, spec, x)  # type: ignore[no-any-return]
    out: Tensor = run(family + "_gram", x, *spec)[0]
    return out


def _compare(
    family: str,
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None,
    quantity: int,
    spec: Spec,
) -> Tensor:
    first = 0 if ys is None else len(xs)
    out = _call(family, [*xs, *(ys or ())], first, quantity, spec)
    return out if out.dim() else out.view(1, 1)  # one pair: a scalar


def _call(family: str, layers: list[Tensor], first: int, quantity: int, spec: Spec) -> Tensor:
    name = family + "_compare"
    if needs_grad(layers):
        return _Similarity.apply(  # type: ignore[no-any-return]
            name, (first, quantity, *spec), *distinct(layers)
        )
    out: Tensor = operator(name, layers)(layers, first, quantity, *spec, False)[0]
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


class _Similarity(torch.autograd.Function):
    # ``arguments`` are those of an operator between its features and ``keep``: one of autograd's
    # instead of six, for it takes its time with every argument.
    @staticmethod
    def forward(ctx: Any, name: str, arguments: tuple[Any, ...], *xs: Tensor) -> Tensor:
        out, state = operator(name, xs)(list(xs), *arguments, True)
        ctx.save_for_backward(state, *xs)
        ctx.name, ctx.arguments = name, arguments
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, *xs = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[2:])
        gradients = run_grad(
            "similarity", ctx.name + "_grad", grads[0], xs, state, needs, *ctx.arguments
        )
        return (None, None, *only_needed(gradients, needs))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, family: str, spec: Spec, x: Tensor) -> Tensor:
        out, state = run(family + "_gram", x, *spec)
        ctx.save_for_backward(state, x)
        ctx.family = family
        ctx.spec = spec
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, x = ctx.saved_tensors
        gradients = run_grad("similarity", ctx.family + "_gram_grad", grads[0], x, state, *ctx.spec)
        return None, None, *gradients
