"""Interleaving, rounds, quartiles, and memory in a process of its own."""

import pytest

from sparsekern.bench import memory, timing
from sparsekern.bench.settings import Settings
from sparsekern.bench.timing import FULL, Effort


def test_rounds_alternate_in_direction():
    seen = []
    effort = Effort(rounds=2, least=2)
    calls = [lambda: seen.append("a"), lambda: seen.append("b")]
    timings = timing.interleave(calls, [1.0, 1.0], effort)
    assert "".join(seen) == "abba"
    assert [t.samples for t in timings] == [2, 2]


@pytest.mark.parametrize(
    ("seconds", "rounds"), [(1e-6, FULL.rounds), (1.5, FULL.least), (5.0, 3), (31.0, 1)]
)
def test_slow_calls_get_fewer_rounds(seconds, rounds):
    assert timing.rounds_for(seconds, FULL) == rounds


def test_summary_is_median_and_quartiles():
    assert timing.summarise([5, 1, 2, 3, 4]) == timing.Timing(3, 2, 4, 5)
    assert timing.summarise([2, 1]) == timing.Timing(1.5, 1, 2, 2)


def test_memory_of_eager_is_at_least_its_gram_matrices():
    settings = Settings(backend="reference", quick=True)
    extra = memory.measure("S4", "pytorch_cka", settings, timeout=60)
    if extra is None:
        pytest.skip("the high-water mark of memory cannot be reset here, or the peer is absent")
    gram = 1500 * 1500 * 4
    assert 2 * gram <= extra <= 20 * gram
