"""The table of achieved rates, from results with known numbers."""

from __future__ import annotations

from sparsekern.bench import achieved
from sparsekern.bench.results import CaseResult, Results, Row
from sparsekern.bench.table import time_text


def case(name: str, seconds: float | None, status: str = "ok", **rest: object) -> CaseResult:
    row = Row(name="sparsekern", label="sparsekern", status=status, seconds=seconds)
    found = CaseResult(id=name, suite="gpu", title="", reason="", rows=[row])
    for key, value in rest.items():
        setattr(found, key, value)
    return found


def results(*cases: CaseResult) -> Results:
    settings = {"device": "cuda", "dtype": "bfloat16"}
    floor = {"flops": 800e12, "bandwidth": 4e12}
    return Results({}, settings, floor, list(cases))


def test_shares_of_the_measured_rates() -> None:
    full = case("G1", 1e-3, bytes=2_000_000_000, operations=80_000_000_000)
    table = achieved.markdown([results(full)])
    time = time_text(1e-3)
    assert table.splitlines()[2:] == [f"| G1 | bfloat16 | {time} | 2000 | 50% | 80.0 | 10% |"]


def test_what_has_no_share() -> None:
    parts = {"bytes": 1, "operations": 1}
    assert achieved.markdown([]) == ""
    cases = (case("a", 1.0), case("b", None, "failed", **parts), case("c", 1.0, "wrong", **parts))
    assert achieved.markdown([results(*cases)]) == ""
