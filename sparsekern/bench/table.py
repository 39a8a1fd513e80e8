"""How results look: numbers with units, the terminal's tables, Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from . import peers
from .case import OURS
from .results import CaseResult, Results, Row

WIDTH = 100
_HEADERS = ("", "time", "spread", "/ ours", "of floor", "error", "host", "memory")
_STEP_HEADERS = ("", "added", "spread", "/ ours", "of step", "error", "host", "memory")


def time_text(seconds: float | None) -> str:
    """Three significant digits with the fitting unit."""
    if seconds is None:
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} µs"


def _digits(value: float) -> str:
    size = abs(value)
    decimals = 3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:.{decimals}f}"


def bytes_text(count: int | None) -> str:
    """Mebibytes, or gibibytes from 1 on."""
    if count is None:
        return "–"
    mebibytes = count / 2**20
    return f"{mebibytes / 1024:.2f} GiB" if mebibytes >= 1024 else f"{mebibytes:.1f} MiB"


def ratio_text(case: CaseResult, row: Row) -> str:
    """How many times sparsekern's time a row takes; no number for a wrong result."""
    if row.status == "wrong":
        return "wrong"
    ratio = case.ratio(row)
    return "–" if ratio is None else f"{_digits(ratio)}×"


def spread_text(row: Row) -> str:
    """Half the distance of the quartiles, as a share of the median."""
    if row.samples == 1 or row.low is None or row.high is None or not row.seconds:
        return "–"
    return f"±{100 * (row.high - row.low) / 2 / abs(row.seconds):.0f}%"


def cells(case: CaseResult, row: Row) -> tuple[str, ...]:
    """One table row, as the headers of :func:`headers`."""
    if row.seconds is None:
        return (row.label, row.status, *[""] * (len(_HEADERS) - 2))
    few = "*" if row.samples < 4 else ""
    share = row.step_share if row.step_share is not None else case.floor_share(row)
    digits = 2 if row.step_share is not None else 0
    return (
        row.label,
        time_text(row.seconds) + few,
        spread_text(row),
        ratio_text(case, row),
        "–" if share is None else f"{100 * share:.{digits}f}%",
        "–" if row.error is None else f"{row.error:.0e}",
        time_text(row.host_seconds),
        bytes_text(row.extra_bytes),
    )


def headers(case: CaseResult) -> tuple[str, ...]:
    """Column headers of a case's table."""
    is_step = any(row.step_share is not None for row in case.rows)
    return _STEP_HEADERS if is_step else _HEADERS


def notes(case: CaseResult) -> list[str]:
    """What the numbers alone do not say: the floor, and why rows are absent, wrong or failed."""
    lines = [case.details] if case.details else []
    if case.floor_seconds is not None:
        lines.append(f"floor {time_text(case.floor_seconds)}, set by {case.floor_limit}")
    lines += [f"{row.label}: {row.status}, {row.note}" for row in case.rows if row.note]
    earlier: dict[str, list[str]] = {}
    for row in case.rows:
        if row.beside:
            when = f"{row.beside.get('date')}, commit {row.beside.get('commit')}"
            text = f"beside {time_text(row.beside['seconds'])} of {OURS}, {when}"
            earlier.setdefault(text, []).append(row.label)
    lines += [f"{', '.join(labels)}: {text}" for text, labels in earlier.items()]
    if any(0 < row.samples < 4 for row in case.rows):
        counts = {row.label: row.samples for row in case.rows if 0 < row.samples < 4}
        lines.append("* few samples: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    return lines


def terminal(case: CaseResult) -> Table:
    """A rich table that fits 100 columns."""
    caption = "\n".join(notes(case))
    table = Table(
        title=f"{case.id}  {case.title}",
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
        width=WIDTH,
    )
    for index, header in enumerate(headers(case)):
        table.add_column(
            header,
            justify="left" if index == 0 else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if index == 0 else None,
        )
    for row in case.rows:
        table.add_row(*cells(case, row), style="dim" if row.seconds is None else None)
    return table


def heading(results: Results) -> str:
    """One paragraph: the machine, the settings, the measured rates."""
    machine, settings = results.machine, results.settings
    others = ", ".join(f"{name} {machine[name]}" for name in peers.PACKAGES if name in machine)
    gpu = ""
    if settings.get("device") == "cuda" and "gpu" in machine:
        gpu = f"{machine['gpu']}, driver {machine.get('driver', 'unknown')}; "
    return (
        f"{gpu}{machine['processor']}, {settings['threads']} threads on {machine['cores']} cores, "
        f"ISA {machine['isa']}; sparsekern {machine['sparsekern']} on the {settings['backend']} "
        f"back end, torch {machine['torch']}, Python {machine['python']}, "
        f"{machine['platform']}; {others}. "
        f"{settings['dtype']} features, matmul precision {settings['matmul_precision']!r}. "
        f"Measured rates: {settings['dtype']} matrix products "
        f"{results.floor['flops'] / 1e9:.0f} GFLOP/s, "
        f"copy {results.floor['bandwidth'] / 1e9:.1f} GB/s."
    )


def markdown(case: CaseResult) -> str:
    """A case as a Markdown section."""
    lines = [
        f"#### {case.id}: {case.title}",
        "",
        _sentence(case.reason),
        "",
        markdown_table(headers(case), [cells(case, row) for row in case.rows]),
    ]
    remarks = [*notes(case), _when([case])]
    lines += ["", "; ".join(remark.lstrip("* ") for remark in remarks if remark) + "."]
    return "\n".join(lines)


def series_markdown(cases: list[CaseResult]) -> str:
    """The cases of a series as one Markdown section: a line per case, a column per contender.

    A cell is a time and, in brackets, how many times sparsekern's it is.
    """
    first = cases[0].series
    assert first is not None
    names = dict.fromkeys(row.name for case in cases for row in case.rows[1:])
    labels = {row.name: row.label for case in cases for row in case.rows}
    header = (first["x_name"], cases[0].rows[0].label, "of floor", "error", "memory")
    lines = []
    for case in sorted(cases, key=lambda case: float((case.series or first)["x"])):
        ours = case.rows[0]
        own = cells(case, ours)
        time = own[1] + (" (wrong)" if ours.status == "wrong" else "")
        x = f"{(case.series or first)['x']:g}"
        rows = (case.row(name) for name in names)
        lines.append((x, time, own[4], own[5], own[7], *(_versus(case, row) for row in rows)))
    order = f" Predicted order: {first['order']}." if first["order"] else ""
    few = (
        " `*`: fewer than four samples."
        if any("*" in cell for row in lines for cell in row)
        else ""
    )
    reasons = dict.fromkeys(case.reason for case in cases)
    return "\n".join(
        [
            f"#### {', '.join(case.id for case in cases)}: {first['family']}",
            "",
            _sentence("; ".join(reasons)) + order,
            "",
            markdown_table((*header, *(labels[name] for name in names)), lines),
            "",
            measured(cases) + few,
        ]
    )


def _versus(case: CaseResult, row: Row | None) -> str:
    if row is None or row.seconds is None:
        return "" if row is None else row.status
    few = "*" if row.samples < 4 else ""
    return f"{time_text(row.seconds)}{few} ({ratio_text(case, row)})"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """Cells as a Markdown table; all columns but the first ``words`` are aligned to the right."""
    rule = "|---" * words + "|---:" * (len(header) - words) + "|"
    first, *rest = ("| " + " | ".join(line) + " |" for line in (header, *lines))
    return "\n".join([first, rule, *rest])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def measured(cases: Sequence[CaseResult]) -> str:
    """When, and with which commits, as a sentence."""
    return _sentence(_when(cases))


def _when(cases: Sequence[CaseResult]) -> str:
    """Dates and commits, each once."""
    found = dict.fromkeys(", commit ".join(filter(None, case.measured.values())) for case in cases)
    return f"measured {'; '.join(filter(None, found))}" if any(found) else ""


def print_case(console: Console, case: CaseResult) -> None:
    """Prints a case's table."""
    console.print(terminal(case))
    console.print()


def print_memory(console: Console, case: CaseResult) -> None:
    """Prints the peak memory of a case's rows, where nothing else was measured."""
    found = [f"{row.label} {bytes_text(row.extra_bytes)}" for row in case.rows]
    console.print(f"{case.id}: {', '.join(found)}", highlight=False)
