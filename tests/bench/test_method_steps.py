"""The cases of the methods' cost per step: one for each, in two forms, that do what they say."""

import pytest
import torch

from sparsekern import pruning
from sparsekern.bench import method_steps, method_table, report
from sparsekern.bench.results import CaseResult, Results, Row
from sparsekern.bench.settings import Settings
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


def test_a_measured_case_tells_both_kinds_of_steps():
    case = next(case for case in method_steps.cases() if case.id == "method-rigl")
    result = case.measure(case, case.contenders, Settings(quick=True))
    assert [row.name for row in result.rows] == ["sparsekern", "reference"]
    for row in result.rows:
        assert set(row.parts) == {"ordinary", "busy", "interval"}
        assert row.parts["interval"] == 100
    assert method_table.markdown([Results({"processor": "P"}, {"threads": 1}, {}, [result])])


def _row(name, seconds, share, **parts):
    return Row(name, name, seconds=seconds, low=0.0, high=4e-4, step_share=share, parts=parts)


def test_the_table_has_a_line_for_each_method():
    rows = [
        _row("sparsekern", 1e-3, 0.02, ordinary=5e-4, busy=5e-2, interval=391),
        _row("reference", -5e-4, -0.01, ordinary=-5e-4, busy=6e-2, interval=391),
    ]
    only = [_row("sparsekern", 2e-3, 0.04, ordinary=2e-3), Row("reference", "reference", "failed")]
    cases = [
        CaseResult("method-set", "training", "SET in a ResNet-20 training step", "r", rows),
        CaseResult("method-rst", "training", "RST in a ResNet-20 training step", "r", only),
        CaseResult("step-mlp-90", "training", "training step of an MLP", "r", only),
    ]
    results = Results({"processor": "P"}, {"threads": 2}, {}, cases)
    lines = method_table.markdown([results]).splitlines()
    assert "--threads 2`); a dense step takes 50.0 ms to 50.0 ms; ±" in lines[0]
    assert lines[4:] == [
        "| SET | +0.50 ms | -0.50 ms | +50.00 ms | +60.00 ms | 391 | +1.00 ± 0.20 ms "
        "| -0.50 ± 0.20 ms | +2.00 % |",
        "| RST | +2.00 ms |  |  |  |  | +2.00 ± 0.20 ms | failed | +4.00 % |",
    ]


def test_without_measured_methods_the_block_keeps_what_it_holds():
    text = "<!-- bench:methods -->\nolder\n<!-- /bench:methods -->\n"
    assert report.fill(text, []) == text
    assert method_table.markdown([Results({}, {}, {}, [])]) is None
