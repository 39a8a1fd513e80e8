"""Interleaving, rounds, quartiles, and memory in a process of its own."""

import dataclasses
import itertools
import subprocess
import sys

import pytest

from sparsekern.bench import memory, runner, timing
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
    ("seconds", "rounds"), [(1e-6, FULL.rounds), (1.5, FULL.rounds), (5.0, 3), (11.0, 1)]
)
def test_slow_calls_get_fewer_rounds(seconds, rounds):
    assert timing.rounds_for(seconds, FULL) == rounds


def test_a_budget_says_what_is_slow():
    settings = Settings(budget=4.0)
    assert [timing.rounds_for(x, settings.effort) for x in (0.7, 0.9, 4.1)] == [41, 3, 1]


def _rounds(times, effort):
    """How many rounds calls of these times get, on a clock that only they move."""
    turns = iter(times)
    (timing_,) = timing.interleave([lambda: None], [1.0], effort, lambda *_: next(turns))
    return timing_.samples


def test_rounds_end_when_the_median_is_settled():
    effort = Effort(rounds=40, least=8, precision=0.01)
    assert _rounds([1.0] * 40, effort) == 8
    # Quartiles 4% apart: half of that over the root of the samples is 1% from 4 on, 0.2% from 100.
    wavering = [1.0, 1.04] * 20
    assert _rounds(wavering, effort) == 8
    assert _rounds(wavering, dataclasses.replace(effort, precision=0.004)) == 26
    assert _rounds(wavering, dataclasses.replace(effort, precision=0.001)) == 40


def test_rounds_end_with_the_budget(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    effort = Effort(rounds=40, least=8, precision=0.0, budget=4.5)
    # The clock is asked once at the start and once before every second round from the ninth on.
    assert _rounds([1.0, 2.0] * 20, effort) == 16


def test_summary_is_median_and_quartiles():
    assert timing.summarise([5, 1, 2, 3, 4]) == timing.Timing(3, 2, 4, 5, 1)
    assert timing.summarise([2, 1]) == timing.Timing(1.5, 1, 2, 2, 1)


@pytest.mark.parametrize(("contenders", "copies"), [(2, 12), (5, 12), (12, 4), (3, 1)])
def test_no_contender_follows_another_on_the_same_copy(contenders, copies):
    all_calls = [[(who, copy) for copy in range(copies)] for who in range(contenders)]
    turns = [itertools.cycle(calls) for calls in runner.staggered(all_calls)]
    used = []
    for turn in range(20):
        order = range(contenders) if turn % 2 == 0 else reversed(range(contenders))
        used += [next(turns[who]) for who in order]
    for who in range(contenders):  # everyone has the copies in turn
        mine = [copy for other, copy in used if other == who]
        assert len(set(mine)) == min(copies, 20)
    if copies > 1:
        within = [used[start : start + contenders] for start in range(0, len(used), contenders)]
        for round_ in within:
            assert all(a[1] != b[1] for a, b in itertools.pairwise(round_))


def test_memory_of_eager_is_at_least_its_gram_matrices():
    settings = Settings(backend="reference", quick=True)
    with memory.Server() as server:
        assert server.measure("S4", "nobody", settings, timeout=60) is None
        extra = server.measure("S4", "reference", settings, timeout=60)
        again = server.measure("S5", "eager", settings, timeout=60)
    if extra is None:
        pytest.skip("the high-water mark of memory cannot be reset here")
    assert 2 * 1500 * 1500 * 4 <= extra <= 20 * 1500 * 1500 * 4
    assert 2 * 800 * 800 * 4 <= again <= 20 * 800 * 800 * 4


def test_a_measurement_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(
        memory,
        "_start",
        lambda: subprocess.Popen(
            [sys.executable, "-c", "input(); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ),
    )
    with memory.Server() as server:
        assert server.measure("S4", "eager", Settings(), timeout=0.1) is None
        assert server._process is None
