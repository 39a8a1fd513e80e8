"""Choices under masks: exact counts, ties, layers that would be emptied, what never comes back."""

import pytest
import torch

from sparsekern.nn.densities import erk_counts, fit_counts, kept_in_all, uniform_shares
from sparsekern.pruning.selection import keep_best

FULL = [torch.ones(3, 4, dtype=torch.bool), torch.ones(8, dtype=torch.bool)]


def plain_choice(scores, allowed, kept):
    """The best of all, sorted one by one; ties by position."""
    flat = [
        (-score, position)
        for position, (score, ok) in enumerate(
            zip(
                torch.cat([s.flatten() for s in scores]).tolist(),
                torch.cat([a.flatten() for a in allowed]).tolist(),
                strict=True,
            )
        )
        if ok
    ]
    chosen = {position for _, position in sorted(flat)[:kept]}
    mask = torch.tensor([i in chosen for i in range(sum(s.numel() for s in scores))])
    parts = mask.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


@pytest.mark.parametrize("kept", [0, 1, 5, 13, 14])
@pytest.mark.parametrize("ties", [False, True])
def test_global_choice(kept, ties):
    scores = [torch.randn(3, 4), torch.randn(8)]
    if ties:
        scores = [score.round() for score in scores]
    allowed = [torch.ones(3, 4, dtype=torch.bool), torch.arange(8) % 4 == 1]
    masks = keep_best(scores, allowed, kept)
    for mask, expected in zip(masks, plain_choice(scores, allowed, kept), strict=True):
        assert torch.equal(mask, expected)


def test_more_than_allowed_is_refused():
    with pytest.raises(ValueError, match="at most the 12 allowed weights, got 13"):
        keep_best([torch.ones(3, 4)], FULL[:1], 13)


def test_no_layer_is_emptied():
    scores = [torch.rand(3, 4) + 10, torch.rand(8)]
    assert [int(m.sum()) for m in keep_best(scores, FULL, 6)] == [6, 0]
    masks = keep_best(scores, FULL, 6, min_per_layer=2)
    assert [int(m.sum()) for m in masks] == [4, 2]
    for mask, score, count in zip(masks, scores, (4, 2), strict=True):
        assert torch.equal(mask, score >= score.flatten().sort().values[-count])


def test_scores_are_not_changed():
    scores = [torch.rand(3, 4), torch.rand(8)]
    copies = [score.clone() for score in scores]
    keep_best(scores, FULL, 6, min_per_layer=1)
    assert all(map(torch.equal, scores, copies))


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_each_layer_keeps_its_count(distribution):
    scores = [torch.rand(3, 4), torch.rand(8)]
    masks = keep_best(scores, FULL, 10, distribution=distribution)
    shapes = [score.shape for score in scores]
    counts = {"erk": erk_counts(shapes, 0.5), "uniform": [6, 4]}[distribution]
    for mask, score, count in zip(masks, scores, counts, strict=True):
        assert int(mask.sum()) == count
        assert score[mask].min() > score[~mask].max()


def test_dtypes_may_differ():
    scores = [torch.rand(3, 4).bfloat16(), torch.rand(8).double()]
    masks = keep_best(scores, FULL, 7)
    for mask, expected in zip(masks, plain_choice(scores, FULL, 7), strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("total", [10, 100, 12_345, 99_991])
def test_counts_survive_the_rounding_of_shares(total):
    score = [torch.rand(total)]
    for kept in {0, 1, total // 3, total // 2 + 1, total - 7, total - 1, total}:
        assert int(keep_best(score, [torch.ones(total, dtype=torch.bool)], kept)[0].sum()) == kept


def test_uniform_shares_add_up():
    sizes = [7, 100, 3, 1]
    for sparsity in (0.0, 0.3, 0.9, 0.99):
        budget = kept_in_all(sum(sizes), sparsity)
        counts = uniform_shares(sizes, budget)
        assert sum(counts) == budget
        for count, size in zip(counts, sizes, strict=True):
            assert abs(count - budget * size / sum(sizes)) < 1
            assert 0 <= count <= size


def test_fit_counts():
    assert fit_counts([5, 5, 5], [0, 0, 0], [9, 9, 9]) == [5, 5, 5]
    assert fit_counts([9, 0, 0], [0, 0, 0], [3, 4, 8]) == [3, 2, 4]  # 6 over rooms of 4 and 8
    assert fit_counts([10, 2, 0], [0, 0, 3], [10, 2, 5]) == [7, 2, 3]
    with pytest.raises(ValueError, match="counts add up to 9: expected 0 to 8"):
        fit_counts([9, 0], [0, 0], [4, 4])
