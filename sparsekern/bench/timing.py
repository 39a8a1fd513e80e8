"""Interleaved timing: A B A B rounds, so that drift of the machine hits everyone alike."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SAMPLE_SECONDS = 0.002  # a sample repeats calls shorter than this


@dataclass(frozen=True)
class Effort:
    """How much time to spend.

    Attributes:
        rounds: the most rounds there are.
        least: rounds that everyone gets, except as the last three fields say.
        budget: seconds that all contenders of a case may take together beyond the least rounds.
        precision: rounds end once everyone's median is known this well: half the distance of its
            quartiles over the root of the number of samples, as a share of it.
        slow: a call longer than this many seconds gets ``slow_rounds``.
        slow_rounds: rounds of a slow call.
        once: a call longer than this is timed once.
    """

    rounds: int = 41
    least: int = 9
    budget: float = 10.0
    precision: float = 0.005
    slow: float = 2.0
    slow_rounds: int = 3
    once: float = 10.0

    def within(self, budget: float) -> Effort:
        """The same with another budget, and calls that would take a fifth of it or more slow."""
        return dataclasses.replace(self, budget=budget, slow=budget / 5, once=budget)


FULL = Effort()
QUICK = Effort(rounds=9, least=5, budget=2.0, precision=0.01, slow=0.7, slow_rounds=1, once=0.7)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the samples, the quartiles around it, the least."""

    median: float
    low: float
    high: float
    samples: int
    least: float


def summarise(samples: Sequence[float]) -> Timing:
    """Median and quartiles; with fewer than four samples the extremes stand for quartiles."""
    ordered = sorted(samples)
    if len(ordered) < 4:
        low, high = ordered[0], ordered[-1]
    else:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Timing(statistics.median(ordered), low, high, len(ordered), ordered[0])


def rounds_for(seconds: float, effort: Effort) -> int:
    """The most rounds that a contender takes part in, from the time of one of its calls."""
    if seconds > effort.once:
        return 1
    return effort.slow_rounds if seconds > effort.slow else effort.rounds


def is_settled(samples: Sequence[float], effort: Effort) -> bool:
    """Whether the median of these samples is known as well as is asked for."""
    timing = summarise(samples)
    error = (timing.high - timing.low) / 2 / math.sqrt(len(samples))
    return len(samples) >= effort.least and error <= effort.precision * abs(timing.median)


def interleave(
    calls: Sequence[Callable[[], object]],
    estimates: Sequence[float],
    effort: Effort,
    sample: Callable[[Callable[[], object], int], float] | None = None,
) -> list[Timing]:
    """Times every call in turn, round after round, every second round in reverse order.

    After the least number of rounds they end when every median is settled or the budget is spent,
    with a round in reverse order, so that everyone had as many turns early as late.

    Args:
        calls: functions of no arguments.
        estimates: the seconds that one warm call of each takes.
        effort: how much time to spend.
        sample: gives the seconds per call over a number of calls; :func:`mean_seconds` if None.

    Returns:
        One timing per call, in order.
    """
    rounds = [rounds_for(seconds, effort) for seconds in estimates]
    repeats = [repeats_for(seconds) for seconds in estimates]
    samples: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for turn in range(max(rounds, default=0)):
        if turn >= effort.least and turn % 2 == 0:
            if time.perf_counter() - start > effort.budget:
                break
            often = [taken for taken, most in zip(samples, rounds, strict=True) if most > turn]
            if all(is_settled(taken, effort) for taken in often):
                break
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            if turn < rounds[index]:
                samples[index].append((sample or mean_seconds)(calls[index], repeats[index]))
    return [summarise(values) for values in samples]


def repeats_for(seconds: float) -> int:
    """How many calls a sample is made of, from the time of one: more than one for short ones."""
    return max(1, int(_SAMPLE_SECONDS / max(seconds, 1e-9)))


def mean_seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call over a number of calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def once(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    return mean_seconds(call, 1)
