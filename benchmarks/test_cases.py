"""The registry's cases as pytest-benchmark suites: ``pytest benchmarks``, in some five minutes.

Small shapes by default; ``SPARSEKERN_BENCH_FULL=1`` takes the full ones. A test is one contender on
one case: a result of sparsekern outside its bound fails, a peer that is wrong or raises is an
expected failure with its reason, an absent one is skipped. ``sparsekern bench`` is the tool for
claims: it interleaves contenders and draws the floor in.
"""

import functools
import os

import pytest
import torch

from sparsekern.bench import cases, inputs, runner
from sparsekern.bench.case import OURS, Case
from sparsekern.bench.results import Row
from sparsekern.bench.settings import Settings

_QUICK = os.environ.get("SPARSEKERN_BENCH_FULL") != "1"
_CASES = {
    case.id: case
    for case in cases.registry(_QUICK)
    if isinstance(case, Case) and "float32" in case.dtypes
}
_PAIRS = [
    pytest.param(case, contender, id=f"{case.id}-{contender.name}")
    for case in _CASES.values()
    for contender in case.contenders
]


@functools.lru_cache(maxsize=1)  # the contenders of a case follow one another
def _prepared(case_id):
    case = _CASES[case_id]
    copies = inputs.copies(case, torch.float32)
    return copies, case.oracle(copies[0])


@pytest.mark.benchmark(max_time=0.2, min_rounds=3)
@pytest.mark.parametrize(("case", "contender"), _PAIRS)
def test_case(benchmark, case, contender):
    threads = case.threads or torch.get_num_threads()
    settings = Settings(threads=threads, quick=_QUICK)
    with runner.pinned_threads(threads):
        copies, expected = _prepared(case.id)
        row = Row(contender.name, contender.label)
        entry = runner.gate_one(row, contender, case, settings, copies, expected)
        if row.status == "absent":
            pytest.skip(row.note)
        if row.status != "ok":
            is_ours = contender.name in (OURS, "reference")
            (pytest.fail if is_ours else pytest.xfail)(f"{row.status}: {row.note}")
        benchmark.group = case.id
        benchmark.extra_info["error"] = row.error
        call = runner.rotated(entry.calls)
        if entry.estimate > settings.effort.slow:
            benchmark.pedantic(call, rounds=settings.effort.slow_rounds)
        else:
            benchmark(call)
