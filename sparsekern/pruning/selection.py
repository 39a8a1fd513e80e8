"""Exact choices under masks: the best-scored weights of all layers, or of each.

A mask says what may be kept: weights outside of it never come back, whatever their score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..nn.densities import erk_shares, fit_counts, uniform_shares
from ..ops.selection import global_masks

DISTRIBUTIONS = ("global", "erk", "uniform")


def keep_best(
    scores: Sequence[Tensor],
    allowed: Sequence[Tensor],
    kept: int,
    *,
    distribution: str = "global",
    min_per_layer: int = 0,
) -> list[Tensor]:
    """Masks that keep the highest scores.

    Args:
        scores: one tensor for each layer, without NaN.
        allowed: bool masks of their shapes: what may be kept.
        kept: how many weights to keep in all, not more than are allowed.
        distribution: ``"global"``: the best of all layers together; ``"erk"``, ``"uniform"``: the
            best of each, as many as :func:`layer_counts` says.
        min_per_layer: as many of each layer's best are kept in any case.

    Returns:
        Bool masks with exactly ``kept`` ones. Of equal scores those that come first stay: in the
        order of the list, then of the row-major position.
    """
    lists = [
        score.detach().masked_fill(~mask, -math.inf)
        for score, mask in zip(scores, allowed, strict=True)
    ]
    available = [int(mask.sum()) for mask in allowed]
    if kept > sum(available):
        raise ValueError(f"kept must be at most the {sum(available)} allowed weights, got {kept}")
    if distribution != "global":
        shapes = [score.shape for score in scores]
        counts = layer_counts(shapes, kept, distribution, available, min_per_layer)
        return [_best(score, count) for score, count in zip(lists, counts, strict=True)]
    if min_per_layer:
        for score, count in zip(lists, available, strict=True):
            score.masked_fill_(_best(score, min(count, min_per_layer)), math.inf)
    total = sum(score.numel() for score in lists)
    masks = global_masks(_alike(lists), _share(total - kept, total))
    return [mask.to(score.device) for mask, score in zip(masks, lists, strict=True)]


def layer_counts(
    shapes: Sequence[Sequence[int]],
    kept: int,
    distribution: str,
    available: Sequence[int],
    min_per_layer: int,
) -> list[int]:
    """How many weights each layer keeps, where that is not decided by scores.

    Args:
        shapes: of the layers' weights.
        kept: the sum of the counts.
        distribution: ``"erk"`` or ``"uniform"``.
        available: the most that each layer can keep.
        min_per_layer: the least, where it has so many.
    """
    if distribution == "erk":
        counts = erk_shares(shapes, kept)
    else:
        counts = uniform_shares([math.prod(shape) for shape in shapes], kept)
    return fit_counts(counts, [min(min_per_layer, most) for most in available], available)


def check_distribution(distribution: str, choices: Sequence[str] = DISTRIBUTIONS) -> str:
    """The distribution itself.

    Raises:
        ValueError: if it is none of the choices.
    """
    if distribution not in choices:
        raise ValueError(f"distribution must be one of {', '.join(choices)}, got {distribution!r}")
    return distribution


def _best(score: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` highest entries of one tensor."""
    if score.numel() == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    (mask,) = global_masks([score], _share(score.numel() - count, score.numel()))
    return mask


def _share(removed: int, total: int) -> float:
    """A sparsity whose ``floor(sparsity · total)`` is ``removed`` in spite of rounding."""
    return min(1.0, (removed + 0.5) / total)


def _alike(scores: list[Tensor]) -> list[Tensor]:
    """On the first one's device and in one dtype that holds all: selection asks for both."""
    dtype = scores[0].dtype
    for score in scores[1:]:
        dtype = torch.promote_types(dtype, score.dtype)
    return [score.to(scores[0].device, dtype) for score in scores]
