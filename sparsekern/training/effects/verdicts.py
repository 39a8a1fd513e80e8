"""What the runs of a claim show: tables, paired differences, and one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..reporting.tables import difference, markdown_table, spread
from ..store import Store
from .claims import Arm, Claim, Measure

_Values = dict[int, float]  # seed -> value


def report(claims: Sequence[Claim], out: Path) -> str:
    """A section for each claim, in Markdown.

    Args:
        claims: whose arms have been trained.
        out: where their folders are.
    """
    parts = ["# Effects"]
    for claim in claims:
        values = [[_values(out / arm.name, m) for m in claim.measures] for arm in claim.arms]
        parts += [f"## {claim.text}", f"**{verdict(claim, values)}**", _table(claim, values)]
    return "\n\n".join(parts) + "\n"


def verdict(claim: Claim, values: Sequence[Sequence[_Values]]) -> str:
    """Whether the claim holds in these runs: by two standard errors of the paired differences.

    Args:
        claim: the claim.
        values: for each arm and measure the values by seed.
    """
    first = values[0][0]
    if claim.least is not None:
        reached = sum(value >= claim.least for value in first.values())
        shown = "Appears" if first and reached == len(first) else "Does not appear"
        return f"{shown}: at least {claim.least:g} in {reached} of {len(first)} runs."
    sentences = []
    for arm, other in zip(claim.arms[1:], values[1:], strict=True):
        mean, error, count = difference(first, other[0])
        right = sum(claim.sign * (first[s] - other[0][s]) > 0 for s in first if s in other[0])
        if count < 2 or math.isnan(error):
            shown = "Too few seeds to say"
        elif claim.sign * mean > 2 * error:
            shown = "Appears"
        elif claim.sign * mean < -2 * error:
            shown = "The opposite appears"
        else:
            shown = "Does not appear (within two standard errors of none)"
        sentences.append(f"{shown} against {arm.label}: {right} of {count} pairs of runs.")
    return " ".join(sentences)


def _table(claim: Claim, values: Sequence[Sequence[_Values]]) -> str:
    rows = []
    for index, (arm, of_arm) in enumerate(zip(claim.arms, values, strict=True)):
        rows.append([arm.label, *_spreads(claim, of_arm)])
        if index:
            rows.append([f"first minus: {_short(arm)}", *_differences(claim, values[0], of_arm)])
    return markdown_table(["", *(m.heading for m in claim.measures)], rows)


def _spreads(claim: Claim, of_arm: Sequence[_Values]) -> list[str]:
    return [
        spread(list(v.values()), m.factor, m.decimals)
        for m, v in zip(claim.measures, of_arm, strict=True)
    ]


def _differences(claim: Claim, first: Sequence[_Values], other: Sequence[_Values]) -> list[str]:
    cells = []
    for m, mine, theirs in zip(claim.measures, first, other, strict=True):
        mean, error, count = difference(mine, theirs)
        if not count:
            cells.append("")
            continue
        text = f"{m.factor * mean:+.{m.decimals}f}"
        cells.append(text if math.isnan(error) else f"{text} ± {m.factor * error:.{m.decimals}f}")
    return cells


def _short(arm: Arm) -> str:
    return arm.label.split(" (")[0]


def _values(directory: Path, measure: Measure) -> _Values:
    runs = [record for record in Store(directory).records() if record["kind"] == "run"]
    found = {run["seed"]: measure.value(run) for run in runs}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}
