"""Documents from committed results: fills the marked blocks of Markdown files.

A file says where generated text goes with ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``;
everything outside such a pair is written by hand and stays. NAME is ``suites`` (a table per suite,
a line per case with the fastest contender of each group), ``tables`` (a table per case, everyone in
it), ``summary`` (the README's cases alone), ``methods`` (what methods add to a training step),
``targets`` (what is wanted, and what was measured of it) or ``pictures`` (the plots of all suites).
``methods`` leaves what is there where no such case has been measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import method_table, table, targets
from . import pictures as drawings
from .case import OURS
from .results import CaseResult, Results, Row, load_folder

RESULTS_FOLDER = Path("benchmarks/results")
_PICTURES = "images"  # beside the document
_NOTHING = "No measurements are committed yet."
_NO_GPU = (
    "## GPU\n\nNothing has been measured on a GPU yet. Where there is one, `sparsekern bench "
    f"--suite gpu --device cuda --out {RESULTS_FOLDER}` measures what belongs here."
)
_BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)


def committed(folder: Path = RESULTS_FOLDER) -> list[Results]:
    """The results that documents are made from: those of full runs."""
    return [results for results in load_folder(folder) if not results.settings["quick"]]


def suites(all_results: list[Results]) -> str:
    """A table per suite of every file: a line per case, a column per group of contenders."""
    return _by_suite(all_results, lambda cases: [_suite_table(cases), table.measured(cases)])


def tables(all_results: list[Results]) -> str:
    """Every case of every file: a part per suite, a table per case, or per series of cases."""
    return _by_suite(all_results, lambda cases: [_section(group) for group in _grouped(cases)])


def _by_suite(all_results: list[Results], sections: Callable[[list[CaseResult]], list[str]]) -> str:
    parts = []
    for results in all_results:
        parts += [f"## {_settings_title(results)}", table.heading(results)]
        for suite in dict.fromkeys(case.suite for case in results.cases):
            cases = [case for case in results.cases if case.suite == suite]
            parts += [f"### {suite}", f"`{_command(results, suite)}`", *sections(cases)]
    if parts and not any(results.settings.get("device") == "cuda" for results in all_results):
        parts.append(_NO_GPU)
    return "\n\n".join(parts) or _NOTHING


def _command(results: Results, suite: str) -> str:
    """What makes these results again."""
    settings = results.settings
    words = ["sparsekern bench", f"--suite {suite}", f"--threads {settings['threads']}"]
    words += [f"--dtype {settings['dtype']}"] if settings["dtype"] != "float32" else []
    words += ["--device cuda"] if settings.get("device") == "cuda" else []
    return " ".join([*words, f"--out {RESULTS_FOLDER}"])


def _grouped(cases: list[CaseResult]) -> list[list[CaseResult]]:
    """Cases one by one, and those of a series together where its first one stands."""
    groups: dict[str, list[CaseResult]] = {}
    for case in cases:
        key = case.id if case.series is None else f"series {case.series['family']}"
        groups.setdefault(key, []).append(case)
    return list(groups.values())


def _section(cases: list[CaseResult]) -> str:
    return table.markdown(cases[0]) if len(cases) == 1 else table.series_markdown(cases)


def summary(all_results: list[Results]) -> str:
    """One line per case with peers: sparsekern's time, and how many times that others take."""
    parts = []
    for results in all_results:
        chosen = [case for case in results.cases if case.summary]
        for suite in dict.fromkeys(case.suite for case in chosen):
            parts += _suite_summary([case for case in chosen if case.suite == suite])
        parts += [table.heading(results)] if chosen else []
    return "\n\n".join(parts) or _NOTHING


def pictures(all_results: list[Results]) -> str:
    """Links to the pictures that :func:`sparsekern.bench.plots.draw` makes, one below the other."""
    parts = []
    for results in all_results:
        for name, says in drawings.names(results).items():
            parts.append(f"![{says}]({_PICTURES}/{drawings.file_name(results, name)})")
    return "\n\n".join(parts) or _NOTHING


def fill(text: str, all_results: list[Results]) -> str:
    """The text with its marked blocks made anew.

    Raises:
        ValueError: if there is no marked block, or one of an unknown name.
    """
    writers: dict[str, Callable[[list[Results]], str | None]] = {
        "suites": suites,
        "tables": tables,
        "summary": summary,
        "methods": method_table.markdown,
        "targets": targets.markdown,
        "pictures": pictures,
    }

    def block(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in writers:
            raise ValueError(f"unknown block bench:{name}: expected one of {', '.join(writers)}")
        made = writers[name](all_results)
        return match.group(0) if made is None else f"{match.group(1)}\n{made}\n\n{match.group(3)}"

    filled, count = _BLOCK.subn(block, text)
    if not count:
        raise ValueError("found no <!-- bench:NAME --> ... <!-- /bench:NAME --> to fill")
    return filled


def fill_file(path: Path, all_results: list[Results]) -> None:
    """Rewrites a file's marked blocks.

    Raises:
        ValueError: if the file is not there, or as :func:`fill`.
    """
    if not path.is_file():
        raise ValueError(f"--report: {path} is not a file")
    try:
        text = fill(path.read_text(encoding="utf-8"), all_results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    path.write_text(text, encoding="utf-8")


def _settings_title(results: Results) -> str:
    settings = results.settings
    if settings.get("device", "cpu") == "cuda":
        return f"{results.machine['gpu']}, {settings['dtype']}"
    return f"CPU, {settings['threads']} threads, {settings['dtype']}"


def _suite_summary(cases: list[CaseResult]) -> list[str]:
    """A table with a column per group of contenders, and sentences for cases without groups."""
    compared = [case for case in cases if _groups([case])]
    parts = []
    if compared:
        columns = _groups(compared)
        lines = [
            (case.title, _own(case), *(_fastest(case, group) for group in columns))
            for case in compared
        ]
        parts.append(table.markdown_table(("", OURS, *columns), lines))
    return parts + [_sentence(case) for case in cases if case not in compared]


def _suite_table(cases: list[CaseResult]) -> str:
    """All cases of a suite; a last column for the fastest of those that are in no group."""
    columns = _groups(cases)
    lines = []
    for case in cases:
        _, _, _, _, share, error, _, memory = table.cells(case, case.rows[0])
        groups = (_fastest(case, group) for group in columns)
        start = (case.id, case.title, _own(case), share, error, memory)
        lines.append((*start, *groups, _fastest_alone(case)))
    header = ["case", "", OURS, "of floor", "error", "memory", *columns, "others"]
    if not any(line[-1] for line in lines):
        header, lines = header[:-1], [line[:-1] for line in lines]
    return table.markdown_table(header, lines, words=2)


def _own(case: CaseResult) -> str:
    ours = case.rows[0]
    if ours.seconds is None:
        return ours.status
    return table.time_text(ours.seconds) + (" (wrong)" if ours.status == "wrong" else "")


def _groups(cases: list[CaseResult]) -> list[str]:
    """Whom sparsekern is compared with, in the order of the rows."""
    names = dict.fromkeys(row.group for case in cases for row in case.rows)
    return [name for name in names if name not in ("", OURS)]


def _sentence(case: CaseResult) -> str:
    """What does not fit the table's columns: the share of a training step, the cost of a call."""
    ours = case.rows[0]
    title = case.title[0].upper() + case.title[1:]
    if ours.step_share is not None:
        return f"{title} takes {100 * ours.step_share:.2f}% of the step's time."
    others = [f"{row.label} {table.time_text(row.seconds)}" for row in case.rows[1:]]
    beside = f" ({', '.join(others)})" if others else ""
    return f"{title}: {table.time_text(ours.seconds)}{beside}."


def _fastest(case: CaseResult, group: str) -> str:
    """The fastest right result of a group, as time and ratio; else why there is none."""
    rows = [row for row in case.rows if row.group == group]
    best = _best(rows)
    if best is not None:
        return f"{table.time_text(best.seconds)} ({table.ratio_text(case, best)})"
    return rows[0].status if rows else ""


def _fastest_alone(case: CaseResult) -> str:
    """The fastest of the contenders of the same work that are in no group, by name."""
    rows = [row for row in case.rows[1:] if not row.group and row.name != "reference"]
    best = _best([row for row in rows if row.error is not None])
    if best is None:
        return ""
    return f"{best.label} {table.time_text(best.seconds)} ({table.ratio_text(case, best)})"


def _best(rows: list[Row]) -> Row | None:
    right = [(row.seconds, row) for row in rows if row.status == "ok" and row.seconds is not None]
    return min(right, key=lambda pair: pair[0])[1] if right else None
