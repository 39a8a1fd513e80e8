"""What a folder of results lacks, and how long the rest will take.

A long measurement is made in pieces, on a machine that is not always free: results are kept case
by case, and the next run takes up what is not there yet.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import git, runner
from .case import AnyCase, Case
from .results import CaseResult, Results
from .settings import Settings


def reasons(
    chosen: Sequence[AnyCase],
    held: Results | None,
    settings: Settings,
    missing: bool,
    older_than: str | None,
) -> dict[str, str]:
    """Which cases are to be measured, by id, and why.

    Args:
        chosen: the cases in question.
        held: what there is; None for nothing.
        settings: of the run: contenders that it leaves out are not missing, and where it
            measures memory alone, that is what may be.
        missing: whether cases count that lack something.
        older_than: a commit: cases that were measured before it count; or None.

    Raises:
        GitError: if ``older_than`` is no commit.
    """
    newest = None if older_than is None else git.commit(older_than)
    known = {case.id: case for case in held.cases} if held is not None else {}
    found = {}
    for case in chosen:
        then = known.get(case.id)
        reason = _lack(case, then, settings) if missing else ""
        if not reason and newest is not None and then is not None and _is_older(then, newest):
            reason = f"measured at {then.measured.get('commit') or 'no known commit'}"
        if reason:
            found[case.id] = reason
    return found


def _lack(case: AnyCase, then: CaseResult | None, settings: Settings) -> str:
    if settings.memory == "only":
        return _lacking_memory(case, then)
    if then is None:
        return "not measured"
    absent = [c.label for c in runner.contenders(case, settings) if then.row(c.name) is None]
    return f"lacks {', '.join(absent)}" if absent else ""


def _lacking_memory(case: AnyCase, then: CaseResult | None) -> str:
    """Memory is added to times that are there, of cases that are calls."""
    if then is None or not isinstance(case, Case):
        return ""
    lacking = [r.label for r in then.rows if r.seconds is not None and r.extra_bytes is None]
    return f"lacks memory of {', '.join(lacking)}" if lacking else ""


def _is_older(then: CaseResult, newest: str) -> bool:
    commit = then.measured.get("commit", "").partition(" ")[0]  # without "with changes"
    return not commit or not git.contains(commit, newest)


@dataclass
class Progress:
    """How far a run is, and how long the rest will take as the cases of its kind took.

    Attributes:
        ids: of all cases of the run, in order.
        known: seconds that cases took, of this run and of earlier ones.
        spent: seconds so far.
        done: cases that are through.
    """

    ids: list[str]
    known: dict[str, float] = field(default_factory=dict)
    spent: float = 0.0
    done: int = 0

    def add(self, case: CaseResult) -> str:
        """Takes note of a case that is through; one line about it all."""
        took = case.took or 0.0
        self.known[case.id] = took
        self.spent += took
        self.done += 1
        left = self.remaining()
        rest = f", about {duration_text(left)} left" if self.done < len(self.ids) else ""
        return f"{self.done} of {len(self.ids)} cases in {duration_text(self.spent)}{rest}"

    def remaining(self) -> float:
        """Seconds that the cases that are left may take; 0 as long as nothing is known."""
        return sum(map(self._expected, self.ids[self.done :]))

    def _expected(self, case_id: str) -> float:
        if case_id in self.known:
            return self.known[case_id]
        kind = _kind(case_id)
        same = [took for name, took in self.known.items() if _kind(name) == kind]
        return statistics.fmean(same or self.known.values() or [0.0])


def _kind(case_id: str) -> str:
    return case_id.split("-")[0]


def duration_text(seconds: float) -> str:
    """Seconds below two minutes, else minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
