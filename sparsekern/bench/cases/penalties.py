"""HyperSparse and layer sparsity with their gradients, over all weights of a network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import sparsekern as sk

from .. import networks
from ..case import OURS, AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..gate import relative_distance, value_and_gradient
from ..inputs import double

_SPARSITY = 0.9
_BEND = math.atanh(1 / math.sqrt(3))


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    count = networks.count(quick)
    return [
        Case(
            id="P1",
            suite="penalties",
            title=f"HyperSparse loss and gradient of ResNet-50, {count / 1e6:.1f}M weights, 90%",
            reason="what every step of ART's regularised phase adds to a training step",
            shapes=f"N={count}",
            inputs=lambda dtype, seed: [
                w.requires_grad_() for w in networks.weights(quick, dtype, seed)
            ],
            oracle=lambda ws: _eager(double(ws), "kthvalue"),
            error=relative_distance,
            # The threshold, the sum of tanh and the gradient each need the one before.
            cost=Cost(operations=0, values=4 * count),
            tiny=lambda dtype: [torch.ones(4, dtype=dtype).requires_grad_()],
            dtypes=("float32",),
            contenders=(
                *sparsekern_contenders(
                    lambda ws: list(torch.autograd.grad(sk.hypersparse_loss(ws, _SPARSITY), ws))
                ),
                Contender(
                    "in_place",
                    "sparsekern hypersparse_backward_",
                    _in_place,
                    prepare=lambda ws: {"weights": ws, "calls": 0},
                    finish=lambda state: [w.grad / state["calls"] for w in state["weights"]],
                    group=OURS,
                ),
                Contender(
                    "eager_kthvalue",
                    "eager with torch.kthvalue",
                    lambda ws: _eager(ws, "kthvalue"),
                    group="eager PyTorch",
                ),
                Contender("eager_sort", "eager with torch.sort", lambda ws: _eager(ws, "sort")),
            ),
        ),
        Case(
            id="P2",
            suite="penalties",
            title=f"layer-sparsity loss and gradient of ResNet-50, {count / 1e6:.1f}M weights",
            reason="what the regulariser of layer sparsity adds to a training step",
            shapes=f"N={count}",
            inputs=lambda dtype, seed: [
                w.requires_grad_() for w in networks.weights(quick, dtype, seed)
            ],
            oracle=lambda ws: _eager_layers(double(ws)),
            error=value_and_gradient,
            # The gradient needs the norms.
            cost=Cost(operations=0, values=3 * count),
            tiny=lambda dtype: [torch.ones(4, dtype=dtype).requires_grad_()],
            dtypes=("float32",),
            contenders=(
                *sparsekern_contenders(_layers),
                Contender("eager_layers", "eager", _eager_layers, group="eager PyTorch"),
                Contender(
                    "eager_foreach", "eager, foreach, own backward", _foreach, group="eager PyTorch"
                ),
            ),
        ),
    ]


def _in_place(state: dict[str, Any]) -> dict[str, Any]:
    sk.hypersparse_backward_(state["weights"], _SPARSITY)
    state["calls"] += 1
    return state


def _layers(ws: Any) -> list[Tensor]:
    loss = sk.layer_sparsity_loss(ws)
    return [loss.detach(), *torch.autograd.grad(loss, ws)]


def _eager_layers(ws: Any) -> list[Tensor]:
    loss = torch.stack([torch.linalg.vector_norm(w.clamp(max=0)) for w in ws]).sum()
    return [loss.detach(), *torch.autograd.grad(loss, ws)]


@torch.no_grad()
def _foreach(ws: Any) -> list[Tensor]:
    """The negative parts become the gradients, in place."""
    negatives = torch._foreach_clamp_max(ws, 0.0)
    norms = torch._foreach_norm(negatives)
    torch._foreach_div_(negatives, norms)
    return [torch.stack(list(norms)).sum(), *negatives]


def _eager(ws: Any, selection: str) -> list[Tensor]:
    size = torch.cat([w.flatten() for w in ws]).abs()
    rank = math.floor(_SPARSITY * len(size))
    with torch.no_grad():
        if selection == "sort":
            threshold = size.sort().values[rank]
        else:
            threshold = size.kthvalue(rank + 1).values
    bent = torch.tanh(size * (_BEND / threshold)).sum()
    total = size.sum()
    return list(torch.autograd.grad(total * (bent / bent.detach()) - total, ws))
