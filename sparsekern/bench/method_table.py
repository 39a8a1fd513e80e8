"""What methods add to a training step, all of them in one table, from their cases' results."""

from __future__ import annotations

from collections.abc import Sequence

from . import table
from .case import OURS
from .results import CaseResult, Results, Row

PREFIX = "method-"  # of the cases' ids
_HEADER = (
    "",
    "ordinary step",
    "reference",
    "step with more to do",
    "reference",
    "which is one of",
    "on average",
    "reference",
    "of a dense step",
)


def markdown(all_results: Sequence[Results]) -> str | None:
    """A table for each file of results that has such cases; None where none has."""
    parts = []
    for results in all_results:
        cases = [case for case in results.cases if case.id.startswith(PREFIX)]
        if cases:
            lines = [_cells(case) for case in cases]
            parts += [_caption(results, cases), table.markdown_table(_HEADER, lines)]
    return "\n\n".join(parts) or None


def _caption(results: Results, cases: Sequence[CaseResult]) -> str:
    steps = [  # added time over its share
        row.seconds / row.step_share
        for case in cases
        for row in case.rows
        if row.seconds and row.step_share
    ]
    span = " to ".join(table.time_text(f(steps)) for f in (min, max)) if steps else "–"
    threads = results.settings["threads"]
    return (
        f"{results.machine['processor']}, {threads} threads (`sparsekern bench --case method "
        f"--threads {threads}`); a dense step takes {span}; ± is half of the quartiles' distance. "
        + table.measured(cases)
    )


def _cells(case: CaseResult) -> list[str]:
    ours, reference = case.row(OURS), case.row("reference")
    interval = (ours.parts or {}).get("interval") if ours is not None else None
    share = ours.step_share if ours is not None else None
    return [
        case.title.partition(" in a ")[0],
        _part(ours, "ordinary"),
        _part(reference, "ordinary"),
        _part(ours, "busy"),
        _part(reference, "busy"),
        f"{interval:,.0f}" if interval else "",
        _average(ours),
        _average(reference),
        "–" if share is None else f"{100 * share:+.2f} %",
    ]


def _part(row: Row | None, name: str) -> str:
    seconds = (row.parts or {}).get(name) if row is not None else None
    return "" if seconds is None else f"{1e3 * seconds:+.2f} ms"


def _average(row: Row | None) -> str:
    if row is None or row.seconds is None:
        return "" if row is None else row.status
    if row.low is None or row.high is None:
        return f"{1e3 * row.seconds:+.2f} ms"
    return f"{1e3 * row.seconds:+.2f} ± {1e3 * (row.high - row.low) / 2:.2f} ms"
