"""Erdős–Rényi-kernel counts: they add up, and follow the sum of a layer's dimensions."""

import math

import pytest

from sparsekern.nn.densities import erk_counts, kept_in_all
from sparsekern.training.models import build_model

RESNET8 = build_model("resnet8", width=16, channels=1, classes=10, seed=0)
SHAPES = [tuple(p.shape) for n, p in RESNET8.named_parameters() if p.dim() > 1]
SIZES = [math.prod(shape) for shape in SHAPES]


@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.5, 0.9, 0.95, 0.98, 0.999])
def test_counts_add_up_exactly(sparsity):
    counts = erk_counts(SHAPES, sparsity)
    assert sum(counts) == sum(SIZES) - math.floor(sparsity * sum(SIZES))
    assert all(0 <= count <= size for count, size in zip(counts, SIZES, strict=True))


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95, 0.98])
def test_counts_follow_the_sum_of_dimensions(sparsity):
    counts = erk_counts(SHAPES, sparsity)
    sparse = [i for i, count in enumerate(counts) if count < SIZES[i]]
    assert sparse
    left = kept_in_all(sum(SIZES), sparsity) - sum(
        size for i, size in enumerate(SIZES) if i not in sparse
    )
    dimensions = {i: sum(SHAPES[i]) for i in sparse}
    for i in sparse:
        share = left * dimensions[i] / sum(dimensions.values())
        assert abs(counts[i] - share) < 1
    # A layer is dense only where its share would exceed it.
    factor = left / sum(dimensions.values())
    for i in set(range(len(SIZES))) - set(sparse):
        assert factor * sum(SHAPES[i]) >= SIZES[i]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_counts_refuse_other_sparsities(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        erk_counts(SHAPES, sparsity)
