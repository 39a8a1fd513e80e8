"""``--base REF``: what has moved between another commit and the code that is checked out here.

REF is built in a throwaway git worktree. The harness of this checkout is laid over it, so that
both sides run the same cases and differ in what they measure alone. One worker process per side
runs sparsekern; the two are asked in turn, A B B A, so that drift of the machine hits both.

A case has moved if the 99% interval of the median of the paired ratios lies wholly beyond ±5% of
1. The interval is that of the sign test: it assumes nothing of how times are distributed. The
margin is there because two processes of the same code may differ by a few per cent for as long
as they live, through where their memory lies.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import git
from .settings import Settings
from .timing import repeats_for

MARGIN = 0.05
_CONFIDENCE = 0.99
_ROUNDS = {False: 41, True: 21}
_SECONDS = 20.0  # what one case may take beyond the least rounds
_LEAST = 11  # rounds: with fewer than 8 there is no 99% interval


@dataclass(frozen=True)
class Movement:
    """One case on both sides.

    Attributes:
        case: id.
        ratio: median of REF's time over this checkout's: above 1, the checkout is faster.
        low: lower end of the interval.
        high: upper end.
        seconds: median time of this checkout.
        problem: why it could not be compared; then the numbers are NaN.
        is_broken: whether it is this checkout that fails, and REF does not.
    """

    case: str
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seconds: float = math.nan
    problem: str = ""
    is_broken: bool = False

    @property
    def verdict(self) -> str:
        """One of "faster", "slower" and "same", or the problem."""
        if self.problem:
            return self.problem
        if self.low > 1 + MARGIN:
            return "faster"
        return "slower" if self.high < 1 - MARGIN else "same"


def compare(
    ref: str, case_ids: Sequence[str], settings: Settings, say: Callable[[str], None]
) -> Iterator[Movement]:
    """Measures cases on both sides, one after the other.

    Args:
        ref: a commit, as git names it.
        case_ids: of cases that are one call, repeated.
        settings: for both sides.
        say: told what is going on.

    Raises:
        ValueError: if this is no git checkout, REF is no commit, or REF does not build.
    """
    with (
        _worktree(ref, say) as base,
        _Worker(base, settings) as old,
        _Worker(git.ROOT, settings) as new,
    ):
        for name, worker in ((ref, old), ("here", new)):
            about = worker.hello
            say(f"{name}: back end {about['backend']}, instruction set {about['isa']}")
        for case_id in case_ids:
            yield _compare_one(case_id, old, new, settings)


def _compare_one(case_id: str, old: _Worker, new: _Worker, settings: Settings) -> Movement:
    then, now = (worker.ask(do="open", case=case_id) for worker in (old, new))
    if "problem" in then or "problem" in now:
        side, problem = ("here", now) if "problem" in now else ("base", then)
        broken = side == "here" and "problem" not in then
        return Movement(case_id, problem=f"{side}: {problem['problem']}", is_broken=broken)
    slower = max(then["seconds"], now["seconds"])
    repeats = repeats_for(slower)
    rounds = int(_SECONDS / (2 * slower * repeats))
    rounds = max(_LEAST, min(_ROUNDS[settings.quick], rounds))
    for worker in (old, new):
        worker.ask(do="sample", repeats=repeats)  # caches and clocks settle
    ratios, times = [], []
    for turn in range(rounds):
        pair = {}
        for worker in (old, new) if turn % 2 == 0 else (new, old):
            pair[worker] = worker.ask(do="sample", repeats=repeats)["seconds"]
        ratios.append(pair[old] / pair[new])
        times.append(pair[new])
    low, high = median_interval(ratios)
    return Movement(case_id, statistics.median(ratios), low, high, statistics.median(times))


def median_interval(
    values: Sequence[float], confidence: float = _CONFIDENCE
) -> tuple[float, float]:
    """The interval of the median by the sign test: two of the ordered values.

    The k smallest and the k largest of n values may be left out if fewer than k+1 of n fair coins
    show heads with a probability of at most (1 - confidence) / 2.
    """
    ordered = sorted(values)
    n, left_out, tail = len(ordered), 0, 0.0
    while left_out < (n - 1) // 2:
        tail += math.comb(n, left_out) / 2**n
        if tail > (1 - confidence) / 2:
            break
        left_out += 1
    first = max(0, left_out - 1)
    return ordered[first], ordered[n - 1 - first]


@contextlib.contextmanager
def _worktree(ref: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A built checkout of REF with this harness laid over it; gone afterwards, Ctrl-C included."""
    commit = git.commit(ref)
    folder = Path(tempfile.mkdtemp(prefix="sparsekern-base-"))
    base = folder / "checkout"
    try:
        git.ask("worktree", "add", "--detach", str(base), commit)
        say(f"building {ref} ({commit[:10]})")
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=base,
            env={**_environment(base), "SPARSEKERN_CUDA": "0"},  # the CPU alone is compared
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ValueError(f"--base: {ref} does not build: {last}")
        shutil.rmtree(base / "sparsekern" / "bench", ignore_errors=True)
        shutil.copytree(git.ROOT / "sparsekern" / "bench", base / "sparsekern" / "bench")
        yield base
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        git.ask("worktree", "prune")


def _environment(root: Path) -> dict[str, str]:
    """This process's, with the package of one checkout first."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


class _Worker:
    """A process that runs one side's sparsekern."""

    def __init__(self, root: Path, settings: Settings) -> None:
        command = [sys.executable, "-m", "sparsekern.bench.worker", "--backend", settings.backend]
        command += ["--dtype", settings.dtype, "--threads", str(settings.threads)]
        command += ["--quick"] if settings.quick else []
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=_environment(root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the workers
        )
        self.hello: dict[str, Any] = {}

    def __enter__(self) -> _Worker:
        self.hello = self._answer()
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError("--base: a worker process ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer
