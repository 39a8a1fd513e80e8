"""The registry's cases as pytest-benchmark suites: ``pytest benchmarks --benchmark-only``.

Small shapes by default; ``SPARSEKERN_BENCH_FULL=1`` takes the full ones. ``sparsekern bench`` is
the tool for claims: it interleaves, rotates inputs and draws the floor in.
"""

import functools
import itertools
import os

import pytest
import torch

from sparsekern.bench import cases, gate, inputs, runner
from sparsekern.bench.case import Case

_QUICK = os.environ.get("SPARSEKERN_BENCH_FULL") != "1"
_DTYPE = torch.float32
_PAIRS = [
    pytest.param(case, contender, id=f"{case.id}-{contender.name}")
    for case in cases.registry(_QUICK)
    if isinstance(case, Case) and "float32" in case.dtypes
    for contender in case.contenders
]


@pytest.mark.parametrize(("case", "contender"), _PAIRS)
def test_case(benchmark, case, contender):
    reason = contender.missing_reason()
    if reason:
        pytest.skip(reason)
    with runner.pinned_threads(case.threads or torch.get_num_threads()):
        _run(benchmark, case, contender)


def _run(benchmark, case, contender):
    copies = inputs.copies(case, _DTYPE)
    calls = [functools.partial(contender.work, contender.prepared(copy)) for copy in copies]
    outputs = contender.outputs(calls[0]())
    if contender.same_work:
        error = gate.distance(case.error, outputs, case.oracle(copies[0]))
        assert error <= case.bounds["float32"]
        benchmark.extra_info["error"] = error
    turns = itertools.cycle(calls)
    benchmark.group = case.id
    benchmark(lambda: next(turns)())
