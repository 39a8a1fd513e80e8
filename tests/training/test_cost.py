import pytest
import torch

import sparsekern as sk
from sparsekern.training.cost import measure_cost, pairwise_loss
from sparsekern.training.settings import default_settings


@pytest.mark.parametrize(
    ("estimator", "reduction"), [("unbiased", "sum"), ("biased", "mean"), ("biased", "sum")]
)
def test_the_loop_over_pairs_computes_the_same_loss(estimator, reduction):
    sizes = [[5, 7, 3], [4, 6]]
    groups = [
        [torch.randn(8, d, dtype=torch.float64, requires_grad=True) for d in group]
        for group in sizes
    ]
    leaves = [x for group in groups for x in group]
    ours = sk.cka_sum(groups, estimator=estimator, reduction=reduction)
    theirs = pairwise_loss(groups, estimator, reduction)
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("regularizer", ["ckasr", "augckasr"])
def test_cost_describes_what_was_measured(regularizer):
    options = {"model": "resnet8", "width": 4, "regularizer": regularizer}
    cost = measure_cost(default_settings(options, demo=False), rounds=2)
    assert min(cost.fused, cost.plain, cost.pairwise, cost.step) > 0
    assert (cost.samples, cost.every) == {"ckasr": (8, 5), "augckasr": (128, 1)}[regularizer]
    assert cost.backend in ("cpu", "reference")
