"""Whether others use the machine: processor time that this process and nobody took, against time.

A neighbour on one of two cores costs a parallel region far more than the half of its speed, and
serial baselines nothing: ratios that were measured then say nothing about the code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_TOLERANCE = 0.25  # cores that others may take
_WINDOW = 0.5  # seconds over which idleness is looked at while waiting


@dataclass(frozen=True)
class Reading:
    """Seconds so far.

    Attributes:
        wall: on the clock.
        available: of processor time that was idle, or taken by this process and its children.
    """

    wall: float
    available: float


def read() -> Reading | None:
    """The counters now, or None where the system does not show them."""
    try:
        fields = _STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()
        idle = (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # with waiting for I/O
    except (OSError, ValueError, IndexError):
        return None
    own = os.times()
    taken = own.user + own.system + own.children_user + own.children_system
    return Reading(time.perf_counter(), idle + taken)


def is_free(before: Reading | None, after: Reading | None, threads: int) -> bool:
    """Whether so many threads had a core each between two readings.

    Where the system does not tell, it is taken to be free.
    """
    if before is None or after is None or after.wall <= before.wall:
        return True
    cores = (after.available - before.available) / (after.wall - before.wall)
    return cores >= threads - _TOLERANCE


def wait_until_free(
    threads: int, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> float:
    """Waits for an idle machine.

    Args:
        threads: that need a core each.
        seconds: after which waiting is given up.
        sleep: waits for a number of seconds.

    Returns:
        The seconds that are left.
    """
    while seconds > 0:
        before = read()
        sleep(_WINDOW)
        seconds -= _WINDOW
        if is_free(before, read(), threads):
            break
    return max(0.0, seconds)
