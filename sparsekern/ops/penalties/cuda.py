"""Penalties on the CUDA kernels: nothing waits for the device.

Weights that are not finite are not looked for; they make the loss or the gradients NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import native
from ..launching import DEVICES, pieces, scratch, where
from ..memory import contiguous, dense
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES, register, run
from ..selection.reference import removed_count
from . import cpu
from .reference import add_gradient

_FAMILY = "penalties_cuda"

hypersparse_loss = functools.partial(cpu.hypersparse_loss, family=_FAMILY)
layer_sparsity_loss = functools.partial(cpu.layer_sparsity_loss, family=_FAMILY)
layer_sparsity_prox_ = functools.partial(cpu.layer_sparsity_prox_, family=_FAMILY)


def hypersparse_backward_(
    weights: Sequence[Tensor], sparsity: float, strength: float, names: str
) -> None:
    """See :func:`sparsekern.hypersparse_backward_`; arguments are checked but for values."""
    wanted = [w for w in weights if w.requires_grad]
    if not wanted:
        return
    state = run(f"{_FAMILY}_hypersparse", list(weights), sparsity, names)[1]
    w = wanted[0]
    scale = torch.full((), strength, dtype=accumulation_dtype(w.dtype), device=w.device)
    needs = [True] * len(wanted)
    gradients = run(f"{_FAMILY}_hypersparse_grad", scale, wanted, state, needs)
    for w, gradient in zip(wanted, gradients, strict=True):
        add_gradient(w, gradient)


def _hypersparse(weights: Sequence[Tensor], sparsity: float, names: str) -> tuple[Tensor, Tensor]:
    rows = [dense(w) for w in weights]
    total = sum(w.numel() for w in rows)
    rank = min(removed_count(sparsity, total), total - 1)
    kernels, code, listed = native.cuda(), DTYPE_CODES[rows[0].dtype], pieces(rows)
    device = rows[0].device
    state = torch.empty(2, dtype=torch.float64, device=device)
    memory = scratch(kernels.penalty_bytes(listed, code), device)
    kernels.hypersparse_state(where(state), listed, code, rank, memory.data_ptr(), state.data_ptr())
    return torch.zeros((), dtype=accumulation_dtype(rows[0].dtype), device=device), state


def _hypersparse_grad(
    grad: Tensor, weights: Sequence[Tensor], state: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    rows, gradients = _with_gradients(weights, needs)
    kernels, code = native.cuda(), DTYPE_CODES[rows[0].dtype]
    listed = pieces(rows, _wanted(gradients, needs))
    upstream = contiguous(grad)
    memory = scratch(kernels.penalty_bytes(listed, code), state.device)
    kernels.hypersparse_grad(
        where(state), listed, code, state.data_ptr(), upstream.data_ptr(), memory.data_ptr()
    )
    return gradients


def _layers(
    weights: Sequence[Tensor], strengths: Sequence[float], names: str
) -> tuple[Tensor, Tensor]:
    rows = [dense(w) for w in weights]
    loss = torch.empty((), dtype=accumulation_dtype(rows[0].dtype), device=rows[0].device)
    return loss, _norms(rows, strengths, loss)


def _norms(rows: Sequence[Tensor], strengths: Sequence[float], loss: Tensor | None) -> Tensor:
    kernels, code = native.cuda(), DTYPE_CODES[rows[0].dtype]
    listed = pieces(rows, factors=strengths)
    norms = torch.empty(len(rows), dtype=torch.float64, device=rows[0].device)
    memory = scratch(kernels.penalty_bytes(listed, code), norms.device)
    address = 0 if loss is None else loss.data_ptr()
    kernels.layer_norms(where(norms), listed, code, memory.data_ptr(), norms.data_ptr(), address)
    return norms


def _layers_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    norms: Tensor,
    strengths: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    rows, gradients = _with_gradients(weights, needs)
    kernels, code = native.cuda(), DTYPE_CODES[rows[0].dtype]
    listed = pieces(rows, _wanted(gradients, needs), strengths)
    upstream = contiguous(grad)
    memory = scratch(kernels.penalty_bytes(listed, code), norms.device)
    kernels.layer_norms_grad(
        where(norms), listed, code, norms.data_ptr(), upstream.data_ptr(), memory.data_ptr()
    )
    return gradients


def _layers_prox(weights: Sequence[Tensor], strengths: Sequence[float], names: str) -> None:
    rows = [dense(w) for w in weights]
    norms = _norms(rows, strengths, None)
    kernels, code = native.cuda(), DTYPE_CODES[rows[0].dtype]
    listed = pieces(rows, rows, strengths)
    memory = scratch(kernels.penalty_bytes(listed, code), norms.device)
    kernels.shrink_negatives(where(norms), listed, code, norms.data_ptr(), memory.data_ptr())
    for w, row in zip(weights, rows, strict=True):
        if row is w:
            torch.autograd.graph.increment_version(w)
        else:
            w.copy_(row)


def _with_gradients(
    weights: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    rows = [dense(w) for w in weights]
    return rows, [
        torch.empty_like(x) if needed else x.new_empty(0)
        for x, needed in zip(rows, needs, strict=True)
    ]


def _wanted(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "hypersparse": _hypersparse,
    "hypersparse_grad": _hypersparse_grad,
    "layers": _layers,
    "layers_grad": _layers_grad,
    "layers_prox_": _layers_prox,
}
for _name, _implementation in _IMPLEMENTATIONS.items():
    register(
        f"{_FAMILY}_{_name}",
        cpu.SCHEMAS[_name],
        _implementation,
        cpu.FAKES[_name],
        devices=DEVICES,
    )
