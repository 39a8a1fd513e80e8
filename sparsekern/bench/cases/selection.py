"""The exact global magnitude threshold over all weights of a network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparsekern as sk

from .. import networks
from ..case import AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..gate import largest_difference

_SPARSITY = 0.9


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    count = networks.count(quick)
    return [
        Case(
            id="T1",
            suite="selection",
            title=f"exact magnitude threshold of ResNet-50, {count / 1e6:.1f}M weights, 90%",
            reason="global pruning: all layers compete, and none are concatenated",
            shapes=f"N={count}",
            inputs=lambda dtype, seed: networks.weights(quick, dtype, seed),
            oracle=lambda ws: [_numpy([w.double() for w in ws])],
            error=largest_difference,
            bounds=dict.fromkeys(("float64", "float32", "bfloat16", "float16"), 0.0),
            cost=Cost(operations=0, values=count),
            tiny=lambda dtype: [torch.ones(4, dtype=dtype), torch.ones(2, 2, dtype=dtype)],
            dtypes=("float32",),
            contenders=(
                *sparsekern_contenders(lambda ws: [sk.magnitude_threshold(ws, _SPARSITY)]),
                Contender("torch_kthvalue", "torch.kthvalue", _kthvalue, group="eager PyTorch"),
                Contender("torch_topk", "torch.topk", _topk, group="eager PyTorch"),
                Contender("torch_sort", "torch.sort", _sort, group="eager PyTorch"),
                Contender("numpy_partition", "numpy.partition", lambda ws: [_numpy(ws)]),
            ),
        )
    ]


def _magnitudes(ws: Any) -> Tensor:
    return torch.cat([w.flatten() for w in ws]).abs_()


def _rank(count: int) -> int:
    return math.floor(_SPARSITY * count)


def _kthvalue(ws: Any) -> list[Tensor]:
    flat = _magnitudes(ws)
    return [flat.kthvalue(_rank(len(flat)) + 1).values]


def _topk(ws: Any) -> list[Tensor]:
    flat = _magnitudes(ws)
    return [flat.topk(len(flat) - _rank(len(flat)), sorted=False).values.min()]


def _sort(ws: Any) -> list[Tensor]:
    flat = _magnitudes(ws)
    return [flat.sort().values[_rank(len(flat))]]


def _numpy(ws: Any) -> Tensor:
    flat = np.concatenate([w.numpy().ravel() for w in ws])
    np.abs(flat, out=flat)
    rank = _rank(len(flat))
    flat.partition(rank)
    return torch.tensor(flat[rank])
