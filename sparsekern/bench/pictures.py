"""Which pictures a results file has, and what they are called. Needs no matplotlib."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from .results import CaseResult, Results

_MOST_PANELS = 6  # in one picture of curves; a suite with more gets one for each kind of case


def names(results: Results) -> dict[str, str]:
    """The pictures by name, each with what it shows."""
    found = {}
    for suite in dict.fromkeys(case.suite for case in results.cases):
        cases = [case for case in results.cases if case.suite == suite]
        if ratio_cases(cases):
            found[f"{suite}-ratios"] = f"{suite}: everyone's time over sparsekern's, case by case"
        for name in curve_families(suite, cases):
            found[name] = f"{name.replace('-curves', '').replace('-', ', ')}: time along each curve"
    if results.floor and roofline_cases(results):
        found["roofline"] = "roofline: operations per second under what the machine allows"
    return found


def file_name(results: Results, name: str) -> str:
    """The file of a picture."""
    return f"{Path(results.file_name).stem}-{name}.png"


def digest(results: Results) -> str:
    """Tells whether a picture was drawn from these results: it is written into its file.

    Made of what pictures show: memory that is added later leaves them as they are.
    """
    about = [results.machine["processor"], results.machine["isa"], results.settings, results.floor]
    shown = [
        [case.id, case.suite, case.shapes, case.series, case.floor_seconds, case.threads]
        + [case.operations, case.bytes]
        + [[row.label, row.status, row.seconds, case.ratio(row)] for row in case.rows]
        for case in results.cases
    ]
    return hashlib.sha256(json.dumps([about, shown]).encode()).hexdigest()[:16]


def ratio_cases(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """Cases that stand alone and have something to be compared with."""
    return [case for case in cases if case.series is None and any(map(case.ratio, case.rows))]


def curve_families(
    suite: str, cases: Sequence[CaseResult]
) -> dict[str, dict[str, list[CaseResult]]]:
    """The curves of a suite: by picture, and in each by family."""
    families: dict[str, list[CaseResult]] = {}
    for case in cases:
        if case.series is not None:
            families.setdefault(case.series["family"], []).append(case)
    families = {name: points for name, points in families.items() if len(points) > 1}
    pictures: dict[str, dict[str, list[CaseResult]]] = {}
    for name, points in families.items():
        kind = f"-{points[0].id.split('-')[0]}" if len(families) > _MOST_PANELS else ""
        pictures.setdefault(f"{suite}-curves{kind}", {})[name] = points
    return pictures


def roofline_cases(results: Results) -> list[CaseResult]:
    """Cases whose operations and bytes are known, at the run's own number of threads."""
    return [
        case
        for case in results.cases
        if case.operations and case.bytes and case.threads is None and case.rows[0].seconds
    ]
