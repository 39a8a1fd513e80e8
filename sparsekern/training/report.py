"""From the records of an experiment to its summary and its table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from .cost import Cost
from .settings import Settings

Record = dict[str, Any]
_MEASURES = ("accuracy", "interlayer_cka", "interlayer_cka_all", "seconds")


def summarise(settings: Settings, records: Sequence[Record], cost: Cost | None) -> Record:
    """Mean and standard deviation over seeds, and the differences between runs of one seed.

    Returns:
        ``"losses"``: per regulariser and measure ``{"mean", "std"}``; with two regularisers also
        ``"paired"``: per measure ``{"mean", "standard_error"}`` of the difference (with the
        regulariser minus without); ``"cost"`` or None. A single seed has no spread: None.
    """
    runs = {
        loss: {r["seed"]: r for r in records if r["kind"] == "run" and r["regularizer"] == loss}
        for loss in settings.variants
    }
    summary: Record = {
        "settings": settings.as_json(),
        "losses": {
            loss: {measure: _spread([r[measure] for r in of.values()]) for measure in _MEASURES}
            for loss, of in runs.items()
        },
        "cost": asdict(cost) if cost else None,
    }
    if settings.compare:
        without, with_it = (runs[loss] for loss in settings.variants)
        summary["paired"] = {
            measure: _difference(
                [with_it[seed][measure] - without[seed][measure] for seed in runs["none"]]
            )
            for measure in _MEASURES
        }
    return summary


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}


def _difference(values: Sequence[float]) -> dict[str, float | None]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error}


def results_table(summary: Record) -> Table:
    """The summary for people: a row per loss, and the paired difference below."""
    settings = summary["settings"]
    title = (
        f"{settings['model']} on {settings['data']}, sparsity {settings['sparsity']:g}, "
        f"{settings['epochs']} epochs, {settings['seeds']} seed(s): mean ± std"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("loss")
    for heading in (f"{settings['held_out']} acc. %", "CKA in stages", "CKA all", "s/run"):
        table.add_column(heading, justify="right")
    for loss, measures in summary["losses"].items():
        accuracy, inside, everywhere, seconds = (measures[measure] for measure in _MEASURES)
        table.add_row(
            label(loss),
            _with_spread(accuracy, ".2f", 100),
            _with_spread(inside, ".3f"),
            _with_spread(everywhere, ".3f"),
            f"{seconds['mean']:.1f}",
        )
    if "paired" in summary:
        accuracy, inside, everywhere, seconds = (summary["paired"][m] for m in _MEASURES)
        table.add_section()
        table.add_row(
            "difference ± s.e.",
            _with_spread(accuracy, "+.2f", 100),
            _with_spread(inside, "+.3f"),
            _with_spread(everywhere, "+.3f"),
            f"{seconds['mean']:+.1f}",
        )
    return table


def _with_spread(value: dict[str, Any], form: str, scale: float = 1) -> str:
    mean, spread = value.values()
    text = f"{scale * mean:{form}}"
    return text if spread is None else f"{text} ± {scale * spread:{form.removeprefix('+')}}"


def cost_line(cost: Cost) -> str:
    """One sentence about the measured cost of the regulariser."""
    return (
        f"The regulariser on {cost.samples} images, value and gradient: "
        f"{cost.fused:.2f} ms here ({cost.backend} back end), {cost.plain:.2f} ms in plain "
        f"PyTorch, {cost.pairwise:.2f} ms as a loop over pairs; "
        f"a training step without it: {cost.step:.1f} ms."
    )


_LABELS = {
    "none": "no regulariser",
    "ckasr": "CKA-SR",
    "augckasr": "AugCKA-SR",
    "hypersparse": "HyperSparse",
    "layersparsity": "layer sparsity",
    "ap": "AP",
}


def label(variant: str) -> str:
    """The name of a variant as people read it."""
    return " + ".join(_LABELS[part] for part in variant.split("+"))
