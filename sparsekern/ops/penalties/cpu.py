"""Penalties on the compiled core: entry points, gradients, and calls of the core.

Gradients are operators of their own, computed once: differentiating them again is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import native
from ..memory import dense, describe, is_dense, like
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES, distinct, needs_grad, only_needed, register, run, run_grad
from ..selection.reference import removed_count
from .reference import add_gradient, not_finite

_FAMILY = "penalties"


def hypersparse_loss(
    weights: Sequence[Tensor], sparsity: float, names: str, *, family: str = _FAMILY
) -> Tensor:
    """See :func:`sparsekern.hypersparse_loss`; arguments are checked but for values.

    The operators are those of a family: ``"penalties"``, or another that follows its schemas.
    """
    if needs_grad(weights):
        return _HyperSparse.apply(  # type: ignore[no-any-return]
            family, sparsity, names, *distinct(weights)
        )
    return run(f"{family}_hypersparse", list(weights), sparsity, names)[0]  # type: ignore[no-any-return]


def hypersparse_backward_(
    weights: Sequence[Tensor], sparsity: float, strength: float, names: str
) -> None:
    """See :func:`sparsekern.hypersparse_backward_`; arguments are checked but for values."""
    if not any(w.requires_grad for w in weights):
        return
    state = run("penalties_hypersparse", list(weights), sparsity, names)[1]
    # A gradient that lies as its weight does is added to; others are made anew.
    present: list[Tensor] = []
    fresh: list[Tensor] = []
    taken: set[int] = set()
    for w in weights:
        if w.requires_grad:
            there = _lies_alike(w) and w.data_ptr() not in taken  # a weight may be listed twice
            (present if there else fresh).append(w)
            taken.add(w.data_ptr())
    if present:
        run("penalties_hypersparse_add_", [w.grad for w in present], present, state, strength)
    if fresh:
        scale = torch.tensor(strength, dtype=torch.float64, device="cpu")
        needs = [True] * len(fresh)
        gradients = run("penalties_hypersparse_grad", scale, fresh, state, needs)
        for w, gradient in zip(fresh, gradients, strict=True):
            add_gradient(w, gradient)


def _lies_alike(w: Tensor) -> bool:
    grad = w.grad
    return (
        grad is not None
        and grad.layout is torch.strided
        and grad.stride() == w.stride()
        and is_dense(w)
        and not (w.is_neg() or grad.is_neg())
    )


def layer_sparsity_loss(
    weights: Sequence[Tensor], strengths: Sequence[float], names: str, *, family: str = _FAMILY
) -> Tensor:
    """See :func:`sparsekern.layer_sparsity_loss`; arguments are checked but for values."""
    if needs_grad(weights):
        return _LayerSparsity.apply(  # type: ignore[no-any-return]
            family, list(strengths), names, *distinct(weights)
        )
    return run(f"{family}_layers", list(weights), list(strengths), names)[0]  # type: ignore[no-any-return]


def layer_sparsity_prox_(
    weights: Sequence[Tensor], strengths: Sequence[float], names: str, *, family: str = _FAMILY
) -> None:
    """See :func:`sparsekern.layer_sparsity_prox_`; arguments are checked but for values."""
    run(f"{family}_layers_prox_", list(weights), list(strengths), names)


class _HyperSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, family: str, sparsity: float, names: str, *weights: Tensor) -> Tensor:
        loss, state = run(f"{family}_hypersparse", list(weights), sparsity, names)
        ctx.save_for_backward(state, *weights)
        ctx.family = family
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, *weights = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[3:])
        gradients = run_grad(
            "penalty", f"{ctx.family}_hypersparse_grad", grads[0], weights, state, needs
        )
        return (None, None, None, *only_needed(gradients, needs))


class _LayerSparsity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, family: str, strengths: list[float], names: str, *weights: Tensor
    ) -> Tensor:
        loss, norms = run(f"{family}_layers", list(weights), strengths, names)
        ctx.save_for_backward(norms, *weights)
        ctx.family, ctx.strengths = family, strengths
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        norms, *weights = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[3:])
        gradients = run_grad(
            "penalty", f"{ctx.family}_layers_grad", grads[0], weights, norms, ctx.strengths, needs
        )
        return (None, None, None, *only_needed(gradients, needs))


def _hypersparse(weights: Sequence[Tensor], sparsity: float, names: str) -> tuple[Tensor, Tensor]:
    rows = [dense(w) for w in weights]
    dtype = rows[0].dtype
    total = sum(w.numel() for w in rows)
    rank = min(removed_count(sparsity, total), total - 1)
    scale, factor, *culprits = native.cpu().hypersparse_state(
        describe(rows), DTYPE_CODES[dtype], rank, torch.get_num_threads()
    )
    bad = [index for index in culprits if index >= 0]
    if bad:
        raise not_finite(weights[min(bad)], names.format(min(bad)))
    state = torch.tensor((scale, factor), dtype=torch.float64, device="cpu")
    return torch.zeros((), dtype=accumulation_dtype(dtype), device="cpu"), state


def _hypersparse_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    state: Tensor,
    needs: Sequence[bool],
    together: bool = False,
) -> list[Tensor]:
    rows = [dense(w) for w in weights]
    gradients = like(rows, needs, owner=weights[0] if together else None)
    scale, factor = state.tolist()
    native.cpu().hypersparse_grad(
        describe(rows),
        DTYPE_CODES[rows[0].dtype],
        scale,
        grad.item() * factor,
        _addresses(gradients, needs),
        False,
        torch.get_num_threads(),
    )
    return gradients


def _hypersparse_add(
    grads: Sequence[Tensor], weights: Sequence[Tensor], state: Tensor, strength: float
) -> None:
    scale, factor = state.tolist()
    native.cpu().hypersparse_grad(
        describe(weights),
        DTYPE_CODES[weights[0].dtype],
        scale,
        strength * factor,
        [grad.data_ptr() for grad in grads],
        True,
        torch.get_num_threads(),
    )
    for grad in grads:
        torch.autograd.graph.increment_version(grad)


def _layers(
    weights: Sequence[Tensor], strengths: Sequence[float], names: str
) -> tuple[Tensor, Tensor]:
    norms = _finite_norms(weights, names)
    loss = math.fsum(s * norm for s, norm in zip(strengths, norms, strict=True))
    dtype = accumulation_dtype(weights[0].dtype)
    return (
        torch.tensor(loss, dtype=dtype, device="cpu"),
        torch.tensor(norms, dtype=torch.float64, device="cpu"),
    )


def _layers_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    norms: Tensor,
    strengths: Sequence[float],
    needs: Sequence[bool],
    together: bool = False,
) -> list[Tensor]:
    rows = [dense(w) for w in weights]
    gradients = like(rows, needs, owner=weights[0] if together else None)
    upstream = grad.item()
    factors = [
        upstream * strength / norm if norm > 0 else 0.0
        for strength, norm in zip(strengths, norms.tolist(), strict=True)
    ]
    native.cpu().layer_norms_grad(
        describe(rows),
        DTYPE_CODES[rows[0].dtype],
        factors,
        _addresses(gradients, needs),
        torch.get_num_threads(),
    )
    return gradients


def _layers_prox(weights: Sequence[Tensor], strengths: Sequence[float], names: str) -> None:
    norms = _finite_norms(weights, names)
    factors = [
        max(0.0, 1 - step / norm) if norm > 0 else 1.0
        for step, norm in zip(strengths, norms, strict=True)
    ]
    rows = [dense(w) for w in weights]
    native.cpu().shrink_negatives(
        describe(rows), DTYPE_CODES[rows[0].dtype], factors, torch.get_num_threads()
    )
    for w, row in zip(weights, rows, strict=True):
        if row is w:
            torch.autograd.graph.increment_version(w)
        else:
            w.copy_(row)


def _finite_norms(weights: Sequence[Tensor], names: str) -> list[float]:
    rows = [dense(w) for w in weights]
    norms: list[float] = native.cpu().layer_norms(
        describe(rows), DTYPE_CODES[rows[0].dtype], torch.get_num_threads()
    )
    for index, norm in enumerate(norms):
        if not math.isfinite(norm):
            raise not_finite(weights[index], names.format(index))
    return norms


def _addresses(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[int]:
    """Where gradients go; an address of 0 skips a tensor."""
    return [
        gradient.data_ptr() if needed else 0
        for gradient, needed in zip(gradients, needs, strict=True)
    ]


def _scalar_fake(weights: Sequence[Tensor], state: int) -> tuple[Tensor, Tensor]:
    w = weights[0]
    dtype = accumulation_dtype(w.dtype)
    return w.new_empty((), dtype=dtype), w.new_empty(state, dtype=torch.float64)


def _gradients_fake(weights: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [
        (torch.empty_like(w) if is_dense(w) else w.new_empty(w.shape)) if needed else w.new_empty(0)
        for w, needed in zip(weights, needs, strict=True)
    ]


SCHEMAS = {
    "hypersparse": "(Tensor[] weights, float sparsity, str names) -> (Tensor, Tensor)",
    "hypersparse_grad": ("(Tensor grad, Tensor[] weights, Tensor state, bool[] needs) -> Tensor[]"),
    "hypersparse_add_": (
        "(Tensor(a!)[] grads, Tensor[] weights, Tensor state, float strength) -> ()"
    ),
    "layers": "(Tensor[] weights, float[] strengths, str names) -> (Tensor, Tensor)",
    "layers_grad": (
        "(Tensor grad, Tensor[] weights, Tensor norms, float[] strengths, bool[] needs) -> Tensor[]"
    ),
    "layers_prox_": "(Tensor(a!)[] weights, float[] strengths, str names) -> ()",
}
FAKES: dict[str, Callable[..., Any]] = {
    "hypersparse": lambda weights, sparsity, names: _scalar_fake(weights, 2),
    "hypersparse_grad": lambda grad, weights, state, needs: _gradients_fake(weights, needs),
    "hypersparse_add_": lambda grads, weights, state, strength: None,
    "layers": lambda weights, strengths, names: _scalar_fake(weights, len(weights)),
    "layers_grad": lambda grad, weights, norms, strengths, needs: _gradients_fake(weights, needs),
    "layers_prox_": lambda weights, strengths, names: None,
}
_IMPLEMENTATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "hypersparse": (_hypersparse, None),
    "hypersparse_grad": (_hypersparse_grad, functools.partial(_hypersparse_grad, together=True)),
    "hypersparse_add_": (_hypersparse_add, None),
    "layers": (_layers, None),
    "layers_grad": (_layers_grad, functools.partial(_layers_grad, together=True)),
    "layers_prox_": (_layers_prox, None),
}
for _name, (_implementation, _direct) in _IMPLEMENTATIONS.items():
    register(f"{_FAMILY}_{_name}", SCHEMAS[_name], _implementation, FAKES[_name], direct=_direct)
