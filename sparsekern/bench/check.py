"""``--check FILE``: have the ratios to the baselines become worse than those of a committed run?

Ratios are compared, not times: both sides of a ratio ran in the same minutes on the same machine.
A ratio counts as worse if it is below ``bound`` times the committed one, and is so again when its
case is measured a second time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import cases, machine, results, runner
from .case import OURS, AnyCase
from .results import CaseResult, Results
from .settings import Settings


@dataclass(frozen=True)
class Finding:
    """One ratio, then and now.

    Attributes:
        case: id.
        baseline: the contender's label.
        committed: how many times sparsekern's time it took in the committed run.
        measured: the same now; the better one where it was measured twice.
        is_worse: whether it was below the bound both times.
    """

    case: str
    baseline: str
    committed: float
    measured: float
    is_worse: bool


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

    On another instruction set than the file's, or with fewer cores than it had threads, ratios
    mean something else: then only the correctness gate is run.

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
        now = next(iter(runner.run([case], alone).cases), None)
        if now is None:
            continue
        if now.rows and now.rows[0].status != "ok":
            outcome.wrong.append(f"{case.id}: {now.rows[0].status}, {now.rows[0].note}")
        elif alone.timed:
            outcome.findings.extend(_compare(case, known[case.id], now, alone, bound, say))
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
    if threads > (os.cpu_count() or 1):
        return f"made with {threads} threads, more than there are here: only the results checked"
    return ""


def _ratios(case: CaseResult) -> dict[str, float]:
    """Ratios by baseline; a share of a training step is too noisy to be one."""
    rows = [row for row in case.rows if row.name != OURS and row.step_share is None]
    return {row.name: ratio for row in rows if (ratio := case.ratio(row)) is not None}


def _compare(
    case: AnyCase,
    then: CaseResult,
    now: CaseResult,
    settings: Settings,
    bound: float,
    say: Callable[[str], None],
) -> list[Finding]:
    committed, first = _ratios(then), _ratios(now)
    low = {name for name in committed if name in first and first[name] < bound * committed[name]}
    second: dict[str, float] = {}
    if low:
        say(f"{case.id}: a ratio fell below {bound:g} of the committed one; measured again")
        (again,) = runner.run([case], settings).cases
        second = _ratios(again)
    return [
        Finding(
            case.id,
            case.contender(name).label,
            committed[name],
            max(first[name], second.get(name, 0.0)),
            name in low and second.get(name, 0.0) < bound * committed[name],
        )
        for name in committed
        if name in first
    ]
