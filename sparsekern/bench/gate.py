"""The correctness gate: no time counts for a result that is not right.

The error of a matrix or scalar is its largest absolute difference from the float64 result (CKA
lives on [-1, 1]); of the CKA-SR loss the relative difference, and of its gradient the relative
Euclidean distance over all layers; the larger of the two counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch
from ..ops import similarity
from .baselines import eager_feature_space
from .cases import FeatureCase
from .contenders import split_groups


def oracle(case: FeatureCase, features: list[Tensor]) -> list[Tensor]:
    """The result in float64: the plain-PyTorch reference, or for d small the d x d formula."""
    xs = [x.detach().double() for x in features]
    with dispatch.backend("reference"):
        if case.operation == "cka_sum":
            leaves = [x.requires_grad_() for x in xs]
            value = similarity.cka_sum(split_groups(leaves, case.groups), kernel=case.kernel)
            return [value.detach(), *torch.autograd.grad(value, leaves)]
        with torch.no_grad():
            if case.feature_space:
                return [eager_feature_space(xs[0], xs[1])]
            if case.operation == "cka":
                return [similarity.cka(xs[0], xs[1], kernel=case.kernel)]
            return [similarity.cka_matrix(xs, kernel=case.kernel)]


def error(case: FeatureCase, result: list[Tensor], expected: list[Tensor]) -> float:
    """How far a result is from the oracle's; infinite where it is NaN or has another shape."""
    if [tuple(x.shape) for x in result] != [tuple(x.shape) for x in expected]:
        return float("inf")
    difference = float((result[0].double() - expected[0]).abs().max())
    if case.backward:
        difference /= float(expected[0].abs())
        pairs = list(zip(result[1:], expected[1:], strict=True))
        distance = sum(float((x.double() - y).square().sum()) for x, y in pairs) ** 0.5
        length = sum(float(y.square().sum()) for _, y in pairs) ** 0.5
        difference = max(difference, distance / length)
    return difference if difference == difference else float("inf")
