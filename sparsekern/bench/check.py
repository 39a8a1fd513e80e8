"""``--check FILE``: have the ratios to the baselines become worse than those of a committed run?

Ratios are compared, not times: both sides of a ratio ran in the same minutes on the same machine.
They are ratios of the shortest samples, which a neighbour disturbs least. One counts as worse if it
is below ``bound`` times the committed one, is so again whenever its case is measured anew, and at
least one of these times nobody else used the cores: on a machine that is never free it is not
judged, and named.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import cases, load, machine, results, runner
from .case import OURS, AnyCase
from .results import CaseResult, Results, Row
from .settings import Settings

_ATTEMPTS = 3  # measurements of a case before a ratio is worse
_PATIENCE = 30.0  # seconds that all of a check may wait for the machine to be free
_OTHER_PROCESSOR = 0.5  # of the bound: caches and memory differ, with the instructions the same


@dataclass(frozen=True)
class Finding:
    """One ratio, then and now.

    Attributes:
        case: id.
        baseline: the contender's label.
        committed: how many times sparsekern's time it took in the committed run.
        measured: the same now; the best where it was measured more than once.
        is_low: whether it was below the bound each time.
        is_judged: whether the machine was free one of these times.
    """

    case: str
    baseline: str
    committed: float
    measured: float
    is_low: bool = False
    is_judged: bool = True

    @property
    def is_worse(self) -> bool:
        """Whether it counts as a regression."""
        return self.is_low and self.is_judged


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        findings: all ratios that could be compared, the one that fell most first.
        wrong: cases where sparsekern's own result was wrong, with why.
        notices: what was not compared, and why.
    """

    findings: list[Finding]
    wrong: list[str]
    notices: list[str]

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong and nothing became worse."""
        return not self.wrong and not any(finding.is_worse for finding in self.findings)


def check(
    path: Path,
    chosen: Callable[[bool], list[AnyCase]],
    backend: str,
    bound: float,
    say: Callable[[str], None] = lambda _text: None,
) -> Outcome:
    """Runs the cases of a results file again, as that file says, and compares the ratios.

    On another instruction set or with another torch than the file's, or with fewer cores than it
    had threads, ratios mean something else: then only the correctness gate is run. On another
    processor with the same instructions the bound is halved.

    Args:
        path: a file that ``--out`` wrote.
        chosen: gives the cases to run, with quick shapes or without.
        backend: what sparsekern runs on.
        bound: what share of the committed ratio is still good.
        say: told what is going on.

    Raises:
        ValueError: if the file is not there or does not hold results.
    """
    committed = _load(path)
    threads = int(committed.settings["threads"])
    reason = _why_not_comparable(committed, threads, backend)
    settings = Settings(
        backend=backend,
        dtype=committed.settings["dtype"],
        threads=min(threads, os.cpu_count() or 1),
        quick=committed.settings["quick"],
        timed=not reason,
        extras=False,
    )
    if not reason and committed.machine["processor"] != machine.describe()["processor"]:
        bound *= _OTHER_PROCESSOR
        reason = f"made on {committed.machine['processor']}: the bound is {bound:g} here"
    watch = _Watch(settings, bound, say)
    known = {case.id: case for case in committed.cases}
    registry = chosen(settings.quick)
    notices = [reason] if reason else []
    fresh = [case.id for case in registry if case.id not in known]
    if fresh:
        notices.append(f"not in {path.name}, so only checked for correctness: {', '.join(fresh)}")
    gone = [name for name in known if name not in cases.case_order()]
    if gone:
        notices.append(f"in {path.name}, but no longer a case: {', '.join(gone)}")
    outcome = Outcome([], [], notices)
    for case in registry:
        alone = dataclasses.replace(settings, timed=settings.timed and case.id in known)
        now, was_free = watch.measure(case, alone)
        if now is None:
            continue
        if now.rows and now.rows[0].status != "ok":
            outcome.wrong.append(f"{case.id}: {now.rows[0].status}, {now.rows[0].note}")
        elif alone.timed:
            outcome.findings.extend(watch.compare(case, known[case.id], now, was_free))
    busy = [f"{f.case} ({f.baseline})" for f in outcome.findings if f.is_low and not f.is_judged]
    if busy:
        notices.append(f"others used the machine, so low ratios are not judged: {', '.join(busy)}")
    outcome.findings.sort(key=lambda finding: finding.measured / finding.committed)
    return outcome


def _load(path: Path) -> Results:
    try:
        return results.from_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"--check: {path} is not a file that can be read") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--check: {path} holds no results: {error}") from None


def _why_not_comparable(committed: Results, threads: int, backend: str) -> str:
    isa = machine.describe()["isa"]
    if committed.machine["isa"] != isa:
        return (
            f"made with the instruction set {committed.machine['isa']} "
            f"({committed.machine['processor']}), and this is {isa}: "
            "ratios are not compared, only the results checked"
        )
    here = Settings(backend=backend).resolved_backend
    if committed.settings["backend"] != here:
        return (
            f"made on the {committed.settings['backend']} back end, and this is {here}: "
            "ratios are not compared, only the results checked"
        )
    then, now = (text.split("+")[0] for text in (committed.machine["torch"], torch.__version__))
    if then != now:
        return f"made with torch {then}, and this is {now}: only the results checked"
    if threads > (os.cpu_count() or 1):
        return f"made with {threads} threads, more than there are here: only the results checked"
    return ""


def _ratios(case: CaseResult) -> dict[str, float]:
    """Ratios by baseline; a share of a training step is too noisy to be one."""
    rows = [row for row in case.rows if row.name != OURS and row.step_share is None]
    ours = _shortest(case.rows[0])
    return {
        row.name: time / ours
        for row in rows
        if case.ratio(row) is not None and (time := _shortest(row)) and ours
    }


def _shortest(row: Row) -> float | None:
    return row.seconds if row.least is None else row.least


@dataclass
class _Watch:
    """Measures cases, with an eye on who else uses the machine."""

    settings: Settings
    bound: float
    say: Callable[[str], None]
    patience: float = _PATIENCE

    def measure(self, case: AnyCase, settings: Settings) -> tuple[CaseResult | None, bool]:
        """A case's result, and whether the machine was free meanwhile."""
        before = load.read()
        result = next(iter(runner.run([case], settings).cases), None)
        return result, load.is_free(before, load.read(), case.threads or settings.threads)

    def compare(
        self, case: AnyCase, then: CaseResult, now: CaseResult, was_free: bool
    ) -> list[Finding]:
        """The findings of a case; where a ratio is low it is measured again."""
        committed, best = _ratios(then), _ratios(now)
        common = [name for name in committed if name in best]

        def low() -> list[str]:
            return [name for name in common if best[name] < self.bound * committed[name]]

        for _ in range(_ATTEMPTS - 1):
            if not low():
                break
            self.say(f"{case.id}: a ratio is below {self.bound:g} of the committed one; once more")
            self.patience = load.wait_until_free(self.settings.threads, self.patience)
            again, is_free = self.measure(case, self.settings)
            assert again is not None
            was_free |= is_free
            for name, ratio in _ratios(again).items():
                best[name] = max(best.get(name, 0.0), ratio)
        return [
            Finding(
                case.id,
                case.contender(name).label,
                committed[name],
                best[name],
                name in low(),
                was_free,
            )
            for name in common
        ]
