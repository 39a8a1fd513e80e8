"""Documents from committed results: fills the marked blocks of Markdown files.

A file says where generated text goes with ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``;
everything outside such a pair is written by hand and stays. NAME is ``tables`` (every case) or
``summary`` (one line per case, the fastest entry point of each package).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import table
from .results import CaseResult, Results, Row, load_folder

RESULTS_FOLDER = Path("benchmarks/results")
_NOTHING = "No measurements are committed yet."
_COLUMNS = {
    "eager PyTorch": ("eager", "eager_centred", "eager_backward"),
    "pytorch-cka": ("pytorch_cka", "pytorch_cka_hsic"),
    "torch_cka": ("torch_cka", "torch_cka_hsic"),
    "ckatorch": ("ckatorch", "ckatorch_hsic1"),
    "authors' formulation": ("authors",),
}
_BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)


def committed(folder: Path = RESULTS_FOLDER) -> list[Results]:
    """The results that documents are made from: those of full runs."""
    return [results for results in load_folder(folder) if not results.settings["quick"]]


def tables(all_results: list[Results]) -> str:
    """Every case of every file, a section each."""
    parts = []
    for results in all_results:
        parts += [f"## {_settings_title(results)}", table.heading(results)]
        parts += [table.markdown(case) for case in results.cases]
    return "\n\n".join(parts) or _NOTHING


def summary(all_results: list[Results]) -> str:
    """One line per case with peers: sparsekern's time, and how many times that others take."""
    parts = [_summary_table(results) for results in all_results]
    return "\n\n".join(part for part in parts if part) or _NOTHING


def fill(text: str, all_results: list[Results]) -> str:
    """The text with its marked blocks made anew.

    Raises:
        ValueError: if there is no marked block, or one of an unknown name.
    """
    writers: dict[str, Callable[[list[Results]], str]] = {"tables": tables, "summary": summary}

    def block(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in writers:
            raise ValueError(f"unknown block bench:{name}: expected one of {', '.join(writers)}")
        return f"{match.group(1)}\n{writers[name](all_results)}\n\n{match.group(3)}"

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
    return f"CPU, {settings['threads']} threads, {settings['dtype']}"


def _summary_table(results: Results) -> str:
    compared = [case for case in results.cases if _is_compared(case)]
    if not compared:
        return ""
    lines = [
        "| | sparsekern | " + " | ".join(_COLUMNS) + " |",
        "|---" + "|---:" * (len(_COLUMNS) + 1) + "|",
    ]
    for case in compared:
        ours = case.rows[0]
        own = table.time_text(ours.seconds) + (" (wrong)" if ours.status == "wrong" else "")
        others = [_fastest(case, names) for names in _COLUMNS.values()]
        lines.append(f"| {case.title} | {own} | " + " | ".join(others) + " |")
    lines += ["", *_summary_sentences(results), table.heading(results)]
    return "\n".join(lines)


def _summary_sentences(results: Results) -> list[str]:
    """What does not fit the table's columns: the share of a training step, the cost of a call."""
    lines = []
    for case in results.cases:
        ours = case.rows[0]
        if ours.step_share is not None:
            lines += [f"{case.title} takes {100 * ours.step_share:.2f}% of the step's time.", ""]
        elif case.row("torch_mul") is not None:
            others = ", ".join(
                f"{row.label} {table.time_text(row.seconds)}" for row in case.rows[1:]
            )
            lines += [f"The {case.title}: {table.time_text(ours.seconds)} ({others}).", ""]
    return lines


def _is_compared(case: CaseResult) -> bool:
    has_peers = any(case.row(name) for name in ("pytorch_cka", "ckatorch", "authors"))
    return has_peers and case.rows[0].step_share is None


def _fastest(case: CaseResult, names: tuple[str, ...]) -> str:
    """The fastest right result of a package, as time and ratio; else why there is none."""
    rows = [row for name in names if (row := case.row(name)) is not None]
    right = [row for row in rows if row.status == "ok" and row.seconds is not None]
    if right:
        best = min(right, key=_seconds)
        return f"{table.time_text(best.seconds)} ({table.ratio_text(case, best)})"
    return rows[0].status if rows else ""


def _seconds(row: Row) -> float:
    return row.seconds if row.seconds is not None else float("inf")
