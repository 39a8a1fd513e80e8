"""Tables in Markdown: means over seeds, and differences between runs of one seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..settings import NONE
from .collect import Configuration, Section

# Measure, heading, factor, decimals.
MEASURES = (
    ("accuracy", "accuracy, %", 100, 2),
    ("interlayer_cka", "interlayer CKA", 1, 3),
    ("dead_neurons.dynamic", "dynamic dead-neuron rate", 1, 3),
    ("dead_neurons.static", "static dead-neuron rate", 1, 3),
    ("merged.count", "layers that layer sparsity merges away", 1, 1),
    ("merged.accuracy", "accuracy without them, %", 100, 2),
)


def spread(values: Sequence[float], factor: float, decimals: int) -> str:
    """Mean ± standard deviation; of one value only itself, of none nothing."""
    if not values:
        return ""
    text = f"{factor * statistics.fmean(values):.{decimals}f}"
    if len(values) > 1:
        text += f" ± {factor * statistics.stdev(values):.{decimals}f}"
    return text


def difference(first: dict[int, float], second: dict[int, float]) -> tuple[float, float, int]:
    """Mean and standard error of first minus second over their common seeds, and their number.

    The standard error of fewer than two is NaN.
    """
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if not differences:
        return math.nan, math.nan, 0
    error = math.nan
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error, len(differences)


def _difference_text(values: tuple[float, float, int], factor: float, decimals: int) -> str:
    mean, error, count = values
    if not count:
        return ""
    text = f"{factor * mean:+.{decimals}f}"
    if not math.isnan(error):
        text += f" ± {factor * error:.{decimals}f}"
        if abs(mean) > 2 * error:
            text = f"**{text}**"
    return text


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is left-aligned and the others right."""
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def results(section: Section, measure: str, factor: float, decimals: int) -> str:
    """A row for each method and variant, a column for each sparsity."""
    sparsities = section.sparsities
    rows = []
    for name, configurations in _by_name(section).items():
        cells = [
            spread(list(section.values(c, measure).values()), factor, decimals) if c else ""
            for c in (configurations.get(sparsity) for sparsity in sparsities)
        ]
        if any(cells):
            rows.append([name, *cells])
    dense = [
        [c.name, text, *[""] * (len(sparsities) - 1)][: 1 + max(1, len(sparsities))]
        for c in section.ordered(c for c in section.runs if c.method == "dense")
        if (text := spread(list(section.values(c, measure).values()), factor, decimals))
    ]
    if not sparsities:
        return markdown_table(["", "no weight removed"], dense)
    table = markdown_table(["", *(f"{sparsity:g}" for sparsity in sparsities)], rows)
    lines = [f"Without pruning: {row[0]} {row[1]}." for row in dense]
    return "\n\n".join([table, *lines])


def paired_differences(section: Section, measure: str, factor: float, decimals: int) -> str:
    """Each variant minus the plain method, over runs of one seed; empty if there are no pairs."""
    sparsities = section.sparsities
    rows = []
    for name, configurations in _by_name(section).items():
        cells = []
        for sparsity in sparsities:
            c = configurations.get(sparsity)
            plain = None if c is None else Configuration(c.method, NONE, sparsity)
            if c is None or plain is None or c.variant == NONE or plain not in section.runs:
                cells.append("")
                continue
            found = difference(section.values(c, measure), section.values(plain, measure))
            cells.append(_difference_text(found, factor, decimals))
        if any(cells):
            rows.append([name, *cells])
    if not rows:
        return ""
    return markdown_table(["", *(f"{sparsity:g}" for sparsity in sparsities)], rows)


def seeds_and_time(section: Section) -> str:
    """How many seeds a configuration has, and how long a run took."""
    counts = [len(runs) for runs in section.runs.values()]
    seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    by_method: dict[str, list[float]] = {}
    for configuration, runs in section.runs.items():
        by_method.setdefault(configuration.method, []).extend(
            run.result["seconds"] for run in runs.values()
        )
    times = ", ".join(
        f"{name} {statistics.median(seconds):.0f}" for name, seconds in by_method.items()
    )
    return (
        f"{len(counts)} configurations, {seeds} seed(s) each, measured on {section.held_out} "
        f"images. Median seconds of a run: {times}."
    )


def _by_name(section: Section) -> dict[str, dict[float, Configuration]]:
    """Name -> sparsity -> configuration, of methods that prune."""
    found: dict[str, dict[float, Configuration]] = {}
    for configuration in section.ordered(c for c in section.runs if c.method != "dense"):
        found.setdefault(configuration.name, {})[configuration.sparsity] = configuration
    return found
