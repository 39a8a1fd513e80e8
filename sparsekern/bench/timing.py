"""Interleaved timing: A B A B rounds, so that drift of the machine hits everyone alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SAMPLE_SECONDS = 0.002  # a sample repeats calls shorter than this


@dataclass(frozen=True)
class Effort:
    """How much time to spend.

    Attributes:
        rounds: rounds of calls that take less than a millisecond or so; slower ones get fewer.
        least: rounds that everyone gets, except as the next two fields say.
        seconds: what one contender's calls may take together, beyond the least rounds.
        slow: a call longer than this many seconds gets ``slow_rounds``.
        slow_rounds: rounds of a slow call.
        once: a call longer than this is timed once.
    """

    rounds: int = 41
    least: int = 9
    seconds: float = 6.0
    slow: float = 2.0
    slow_rounds: int = 3
    once: float = 30.0


FULL = Effort()
QUICK = Effort(rounds=9, least=5, seconds=0.5, slow=0.7, slow_rounds=1, once=0.7)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the samples and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int


def summarise(samples: Sequence[float]) -> Timing:
    """Median and quartiles; with fewer than four samples the extremes stand for quartiles."""
    ordered = sorted(samples)
    if len(ordered) < 4:
        low, high = ordered[0], ordered[-1]
    else:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Timing(statistics.median(ordered), low, high, len(ordered))


def rounds_for(seconds: float, effort: Effort) -> int:
    """How many rounds a contender takes part in, from the time of one of its calls."""
    if seconds > effort.once:
        return 1
    if seconds > effort.slow:
        return effort.slow_rounds
    return max(effort.least, min(effort.rounds, int(effort.seconds / max(seconds, 1e-9))))


def interleave(
    calls: Sequence[Callable[[], object]],
    estimates: Sequence[float],
    effort: Effort,
    sample: Callable[[Callable[[], object], int], float] | None = None,
) -> list[Timing]:
    """Times every call in turn, round after round, every second round in reverse order.

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
    for turn in range(max(rounds, default=0)):
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
