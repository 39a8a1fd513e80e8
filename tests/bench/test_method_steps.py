"""The cases of the methods' cost per step: one for each, in two forms, that do what they say."""

import pytest
import torch

from sparsekern import pruning
from sparsekern.bench import method_steps
from sparsekern.training.catalogue import METHODS

_OTHERS = {"ap", "ckasr", "hypersparse", "layersparsity"}


def test_there_is_a_case_for_each_method():
    names = {method.name for method in method_steps.METHODS}
    assert names == set(METHODS) - {"dense"} | _OTHERS
    for case in method_steps.cases():
        assert [c.name for c in case.contenders] == ["sparsekern", "reference"]


@pytest.mark.parametrize("method", method_steps.METHODS, ids=lambda method: method.name)
def test_ordinary_steps_keep_masks_and_busy_ones_change_them(method):
    ordinary = method_steps._Step(method, True, "auto", busy=False)
    for _ in range(3):
        ordinary()
    if ordinary._pruner is None:
        return
    before = {name: mask.clone() for name, mask in ordinary._pruner.masks.items()}
    ordinary()
    assert all(torch.equal(mask, before[name]) for name, mask in ordinary._pruner.masks.items())
    base = ordinary._pruner.base if method.name == "ap" else ordinary._pruner
    if method.name not in ("lth", "art"):  # these prune at epochs that an ordinary step has none of
        assert ordinary._pruner.sparsity == pytest.approx(0.95, abs=1e-3)
    assert isinstance(base, pruning.Pruner)
    if method.interval and method.name != "art":  # ART decides, and prunes in the end
        busy = method_steps._Step(method, True, "auto", busy=True)
        busy()
        before = {name: mask.clone() for name, mask in busy._pruner.masks.items()}
        for _ in range(3):
            busy()
        after = busy._pruner.masks
        assert any(not torch.equal(mask, before[name]) for name, mask in after.items())
