"""The HyperSparse loss and its gradient over all weights of a network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import sparsekern as sk

from .. import networks
from ..case import AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..gate import relative_distance
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
                    "eager_kthvalue",
                    "eager with torch.kthvalue",
                    lambda ws: _eager(ws, "kthvalue"),
                    group="eager PyTorch",
                ),
                Contender("eager_sort", "eager with torch.sort", lambda ws: _eager(ws, "sort")),
            ),
        )
    ]


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
