"""Every contender of selection, penalties and activity computes what the oracle computes."""

import pytest
import torch

from sparsekern.bench import gate, networks
from sparsekern.bench.cases import activity, penalties, selection

_SHAPES = [(8, 3, 7, 7), (16, 8, 3, 3), (10, 16), (5,)]
_FAMILIES = {
    "selection": lambda: selection.cases(quick=False),
    "penalties": lambda: penalties.cases(quick=False),
    "activity": lambda: [
        activity._case("contiguous", (3, 6, 5, 4), ""),
        activity._case("channels_last", (3, 6, 5, 4), ""),
        activity._case("tokens", (3, 5, 6), ""),
    ],
}
_ALL = [
    pytest.param(family, index, name, id=f"{case.id}-{name}")
    for family, cases in _FAMILIES.items()
    for index, case in enumerate(cases())
    for name in (contender.name for contender in case.contenders)
]


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(networks, "resnet50_shapes", lambda: _SHAPES)


@pytest.mark.parametrize(("family", "index", "name"), _ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("calls", [1, 3])
def test_every_contender_is_right(family, index, name, dtype, calls):
    case = _FAMILIES[family]()[index]
    contender = case.contender(name)
    reason = contender.missing_reason()
    if reason:
        pytest.skip(reason)
    inputs = case.inputs(dtype, 0)
    expected = case.oracle(inputs)
    prepared = contender.prepared(inputs)
    for _ in range(calls):  # as timing does: the inputs must stay what they were
        returned = contender.work(prepared)
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    assert gate.distance(case.error, contender.outputs(returned), expected) <= bound


@pytest.mark.parametrize("family", ["selection", "penalties"])
def test_a_wrong_result_is_caught(family):
    for case in _FAMILIES[family]():
        inputs = case.inputs(torch.float32, 0)
        expected = case.oracle(inputs)
        wrong = [x.clone() for x in expected]
        last = wrong[-1].view(-1)
        last[0] = ~last[0] if last.dtype == torch.bool else last[0] + 0.1 + 0.1 * last[0].abs()
        assert gate.distance(case.error, wrong, expected) > case.bounds["float32"]
