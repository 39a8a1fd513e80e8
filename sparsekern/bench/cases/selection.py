"""The exact global magnitude threshold over all weights of a network, and the masks it makes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekern as sk

from .. import networks
from ..case import AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..gate import largest_difference, mismatches

_SPARSITY = 0.9


def _pruned(ws: Any) -> list[Tensor]:
    """``prune.global_unstructured`` on modules made around the weights, which costs nothing."""
    modules = [nn.Module() for _ in ws]
    for module, w in zip(modules, ws, strict=True):
        module.weight = nn.Parameter(w)
    removed = rank_of(sum(w.numel() for w in ws))
    targets = [(module, "weight") for module in modules]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=removed)
    return [*(module.get_buffer("weight_mask") for module in modules), *ws]


def _smallest_kept(returned: list[Tensor]) -> list[Tensor]:
    masks, ws = returned[: len(returned) // 2], returned[len(returned) // 2 :]
    kept = [w[mask > 0].abs() for mask, w in zip(masks, ws, strict=True)]
    return [torch.cat(kept).min()]


_PRUNE = Contender(
    "torch_prune",
    "torch prune.global_unstructured",
    _pruned,
    finish=_smallest_kept,
    group="torch.nn.utils.prune",
)


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    count = networks.count(quick)
    # Eager masks keep every weight that ties with the threshold: a few in a million.
    ties = dict.fromkeys(("float64", "float32", "bfloat16", "float16"), 1e-5)
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
                _PRUNE,
            ),
        ),
        Case(
            id="T1-masks",
            suite="selection",
            title=f"global masks of ResNet-50, {count / 1e6:.1f}M weights, 90%",
            reason="what pruning needs of the threshold: a mask for each layer",
            shapes=f"N={count}",
            inputs=lambda dtype, seed: [w.abs_() for w in networks.weights(quick, dtype, seed)],
            oracle=_sorted_masks,
            error=mismatches,
            bounds=ties,
            cost=Cost(operations=0, values=2 * count, other_bytes=count),
            tiny=lambda dtype: [torch.ones(4, dtype=dtype), torch.ones(2, 2, dtype=dtype)],
            dtypes=("float32",),
            contenders=(
                *sparsekern_contenders(lambda scores: sk.global_masks(scores, _SPARSITY)),
                Contender(
                    "torch_kthvalue",
                    "torch.kthvalue",
                    lambda scores: _above(scores, _kthvalue(scores)[0]),
                    group="eager PyTorch",
                ),
                Contender(
                    "torch_topk",
                    "torch.topk",
                    lambda scores: _above(scores, _topk(scores)[0]),
                    group="eager PyTorch",
                ),
                dataclasses.replace(_PRUNE, finish=lambda returned: returned[: len(returned) // 2]),
            ),
        ),
    ]


def _magnitudes(ws: Any) -> Tensor:
    return torch.cat([w.flatten() for w in ws]).abs_()


def rank_of(count: int) -> int:
    """The position of the threshold among so many magnitudes in ascending order."""
    return math.floor(_SPARSITY * count)


def _kthvalue(ws: Any) -> list[Tensor]:
    flat = _magnitudes(ws)
    return [flat.kthvalue(rank_of(len(flat)) + 1).values]


def _topk(ws: Any) -> list[Tensor]:
    flat = _magnitudes(ws)
    return [flat.topk(len(flat) - rank_of(len(flat)), sorted=False).values.min()]


def _sort(ws: Any) -> list[Tensor]:
    flat = _magnitudes(ws)
    return [flat.sort().values[rank_of(len(flat))]]


def _above(scores: Any, threshold: Tensor) -> list[Tensor]:
    return [score >= threshold for score in scores]


def _sorted_masks(scores: Any) -> list[Tensor]:
    flat = torch.cat([score.flatten() for score in scores])
    order = flat.sort(descending=True, stable=True).indices
    keep = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    keep[order[: len(flat) - rank_of(len(flat))]] = True
    parts = keep.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def _numpy(ws: Any) -> Tensor:
    flat = np.concatenate([w.numpy().ravel() for w in ws])
    np.abs(flat, out=flat)
    rank = rank_of(len(flat))
    flat.partition(rank)
    return torch.tensor(flat[rank])
