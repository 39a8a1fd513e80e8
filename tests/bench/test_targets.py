"""Targets: numbers out of results, the worst of several cases, and what was not measured."""

import dataclasses

import pytest

from sparsekern.bench import cases, targets
from sparsekern.bench.results import CaseResult, Results, Row
from sparsekern.bench.targets import TARGETS

_MACHINE = {"processor": "P", "isa": "avx2"}


def _case(case_id, ours, **others):
    rows = [Row("sparsekern", "sparsekern", seconds=ours, samples=9, error=1e-7, extra_bytes=1000)]
    rows += [
        Row(name, name, seconds=seconds, samples=9, error=1e-7, extra_bytes=5000)
        for name, seconds in others.items()
    ]
    return CaseResult(case_id, "masked", "t", "r", rows, floor_seconds=0.5 * ours)


def test_the_worst_case_counts():
    target = targets._over("M2-64x64$ M2-128x128$", "dense", 2, "dense")
    measured = [_case("M2-64x64", 1.0, dense=3.0), _case("M2-128x128", 1.0, dense=1.5)]
    assert target.line(measured) == (
        "M2-64x64, M2-128x128",
        "dense takes ≥ 2×",
        "1.5× (M2-128x128)",
        "**missed**",
    )
    assert target.line(measured[:1])[2:] == ("3×", "met")
    assert target.line([_case("M2-64x64-99", 1.0, dense=3.0)])[2:] == ("", "not measured")


def test_wrong_results_meet_nothing():
    target = targets._over("S1$", "eager", 1, "eager")
    case = _case("S1", 1.0, eager=3.0)
    case.rows[1].status = "wrong"
    assert target.line([case])[3] == "not measured"


def test_peers_are_those_of_the_same_work():
    target = targets._never_slower("M0", 0.95, "nobody is faster")
    case = _case("M0-64", 1.0, csr=1.2, dense=0.1, spmm=0.2, slow=9.0)
    csr, dense, spmm, _ = case.rows[1:]
    dense.error = None  # the unmasked product: another result
    spmm.group = "sparsekern"
    assert target.line([case])[2:] == ("1.2× (M0-64, csr)", "met")
    csr.seconds = 0.9
    assert target.line([case])[3] == "**missed**"
    against_spmm = targets._never_slower("M0", 0.95, "nobody is faster", ours="spmm")
    assert against_spmm.line([case])[2:] == ("4.5× (M0-64, csr)", "met")
    spmm.status = "wrong"
    assert against_spmm.line([case])[3] == "not measured"


@pytest.mark.parametrize(
    ("target", "measured", "verdict"),
    [
        (targets._floor("A$", 0.5), "50%", "met"),
        (targets._floors("A$", 1.5), "2×", "**missed**"),
        (targets._seconds("A$", 1.0), "2.00 s", "**missed**"),
        (targets._error("A$", 1e-6), "1e-07", "met"),
        (targets._memory("A$", 999, "little"), "0.0 MiB", "**missed**"),
        (targets._memory_share("A$", "eager", 0.2, "a fifth"), "20%", "met"),
    ],
)
def test_numbers_of_ours(target, measured, verdict):
    assert target.line([_case("A", 2.0, eager=3.0)])[2:] == (measured, verdict)


def test_every_target_is_about_a_case_and_a_contender_that_exist():
    for target in TARGETS:
        for name in target.case.split():
            alone = dataclasses.replace(target, case=name)
            assert any(map(alone.concerns, cases.case_order())), name
        results = []  # in which everyone is there
        for case in cases.registry():
            if target.concerns(case.id):
                result = _case(case.id, 1.0, **{c.name: 2.0 for c in case.contenders[1:]})
                result.rows[0].step_share = 0.5
                results.append(result)
        assert target.line(results)[3] != "not measured", target.wanted


def test_cases_that_were_not_measured_are_counted():
    target = targets._floor("S3", 0.1)
    assert target.line([_case("S3", 1.0)])[2:] == ("50% (1 of 2 cases measured)", "met")


def test_the_table_counts_and_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(
        targets,
        "TARGETS",
        (
            targets._over("A$", "eager", 2, "eager"),
            targets._over("B$", "eager", 2, "eager"),
            targets._over("C$", "eager", 2, "eager"),
        ),
    )
    settings = {"dtype": "float32", "threads": 2}
    measured = [_case("A", 1.0, eager=3.0), _case("B", 1.0, eager=1.0)]
    text = targets.markdown([Results(_MACHINE, settings, {}, measured)])
    assert "1 of 3 met, 1 missed, 1 not measured" in text
    assert "| A | eager takes ≥ 2× | 3× | met |" in text
    assert "| B | eager takes ≥ 2× | 1× | **missed** |" in text
    assert "| C | eager takes ≥ 2× |  | not measured |" in text
    assert text.count("not measured") == 2 + len(targets.GPU_TARGETS)
