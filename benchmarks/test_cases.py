"""The registry's cases as pytest-benchmark suites: ``pytest benchmarks --benchmark-only``.

Small shapes by default; ``SPARSEKERN_BENCH_FULL=1`` takes the full ones. ``sparsekern bench`` is
the tool for claims: it interleaves, rotates inputs and draws the floor in.
"""

import itertools
import os

import pytest
import torch

from sparsekern.bench import cases, contenders, gate, inputs

_QUICK = os.environ.get("SPARSEKERN_BENCH_FULL") != "1"
_DTYPE = torch.float32
_CASES = [case for case in cases.select(quick=_QUICK) if isinstance(case, cases.FeatureCase)]
_PAIRS = [
    pytest.param(case, name, id=f"{case.id}-{name}")
    for case in _CASES
    for name in [contenders.OURS, *contenders.baseline_names(case, None, "auto")]
]


@pytest.mark.parametrize(("case", "name"), _PAIRS)
def test_case(benchmark, case, name):
    contender = contenders.build(name, case, "auto")
    if contender.call is None:
        pytest.skip(contender.missing)
    features = inputs.copies(case, _DTYPE)
    result = contender.call(features[0])
    error = gate.error(case, result, gate.oracle(case, features[0]))
    assert error <= case.error_bound("float32")
    turns = itertools.cycle(features)
    benchmark.group = case.id
    benchmark.extra_info["error"] = error
    benchmark(lambda: contender.call(next(turns)))
