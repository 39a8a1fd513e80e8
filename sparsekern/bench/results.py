"""What a run leaves: plain dataclasses, and their JSON files."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .case import CaseHead
from .timing import Timing

_SCHEMA = 1


@dataclass
class Row:
    """One contender on one case.

    Attributes:
        name: of the contender.
        label: its name in tables.
        status: "ok", "wrong" (outside the error bound), "failed" or "absent".
        note: why, where the status is not "ok".
        seconds: median time of a call; the time that is added per step for a training case.
        low: lower quartile of the samples.
        high: upper quartile.
        samples: how many times it was timed.
        least: the shortest of the samples: what a busy machine disturbs least.
        error: against float64, as :mod:`sparsekern.bench.gate` defines it.
        extra_bytes: peak memory above inputs and results.
        step_share: of a training step's time, for a training case.
        host_seconds: time of the same call on inputs that cost nothing: the host overhead.
        group: the column of the summary that it belongs to.
        parts: of a method in a training step, whose "seconds" are the mean time added: what an
            "ordinary" step adds and a "busy" one, and the "interval" of the latter.
        beside: of a row that is older than the case's others: sparsekern's "seconds" in the run
            that it is from, and the "date" and "commit" of that.
    """

    name: str
    label: str
    status: str = "ok"
    note: str = ""
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    error: float | None = None
    extra_bytes: int | None = None
    step_share: float | None = None
    host_seconds: float | None = None
    group: str = ""
    least: float | None = None
    beside: dict[str, Any] | None = None
    parts: dict[str, float] | None = None

    def set_timing(self, timing: Timing) -> None:
        """Fills in the median, the quartiles, the least and the number of samples."""
        self.seconds, self.low, self.high = timing.median, timing.low, timing.high
        self.samples, self.least = timing.samples, timing.least


@dataclass
class CaseResult:
    """All contenders on one case, sparsekern first.

    Attributes:
        id: of the case.
        suite: of the case.
        title: the work.
        reason: why these shapes.
        rows: one per contender.
        floor_seconds: the least time that the machine's measured rates allow, where defined.
        floor_limit: what limits it: "operations" or "bytes".
        error_bound: the error up to which a time counts, where there is a result to check.
        details: further facts for the caption, such as the time of the step itself.
        measured: date and commit.
        shapes: the sizes alone.
        summary: whether it has a line in the summary.
        series: its :class:`sparsekern.bench.case.Series` as a dict, or None.
        operations: that must be done, where there is a floor.
        bytes: that must move, where there is a floor.
        threads: its own number, where it is not that of the run.
        rates: measured rates at that number, as in :class:`Results`.
        took: seconds that the whole of its measurement took.
    """

    id: str
    suite: str
    title: str
    reason: str
    rows: list[Row] = field(default_factory=list)
    floor_seconds: float | None = None
    floor_limit: str = ""
    error_bound: float | None = None
    details: str = ""
    measured: dict[str, str] = field(default_factory=dict)
    shapes: str = ""
    summary: bool = False
    series: dict[str, Any] | None = None
    operations: int | None = None
    bytes: int | None = None
    threads: int | None = None
    rates: dict[str, float] | None = None
    took: float | None = None

    @classmethod
    def of(cls, case: CaseHead, rows: list[Row], **rest: Any) -> CaseResult:
        """The result of a case, with what the case says of itself."""
        return cls(
            id=case.id,
            suite=case.suite,
            title=case.title,
            reason=case.reason,
            rows=rows,
            shapes=case.shapes,
            summary=case.summary,
            series=None if case.series is None else dataclasses.asdict(case.series),
            threads=case.threads,
            **rest,
        )

    def row(self, name: str) -> Row | None:
        """The row of a contender, if it is there."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, row: Row) -> float | None:
        """A row's time over sparsekern's in the same run; None unless both results are right.

        What is added to a step may be lost in its noise: there is no ratio where a time's quartiles
        reach down to zero.
        """
        ours = self.rows[0]
        if row is ours or row.status != "ok" or ours.status != "ok":
            return None
        against = row.beside["seconds"] if row.beside else ours.seconds
        if row.seconds is None or against is None or row.seconds <= 0 or against <= 0:
            return None
        if any(each.low is not None and each.low <= 0 for each in (row, ours)):
            return None
        return float(row.seconds / against)

    def floor_share(self, row: Row) -> float | None:
        """The floor over a row's time."""
        return self.floor_seconds / row.seconds if self.floor_seconds and row.seconds else None


@dataclass
class Results:
    """A file of results: one machine, one set of settings, any number of cases.

    Attributes:
        machine: processor and versions.
        settings: threads, dtype, back end and the like: what times depend on.
        floor: measured rates.
        cases: in the order of the registry.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    floor: dict[str, float]
    cases: list[CaseResult] = field(default_factory=list)

    @property
    def file_name(self) -> str:
        """Where these settings are kept inside a folder of results."""
        return file_name(self.settings)


def file_name(settings: dict[str, Any]) -> str:
    """Where results of these settings are kept inside a folder."""
    parts = [settings.get("device", "cpu"), f"{settings['threads']}-threads", settings["dtype"]]
    parts += [settings["backend"]] if settings["backend"] != "cpu" else []
    parts += ["quick"] if settings["quick"] else []
    return "-".join(parts) + ".json"


def load_same(folder: Path, machine: dict[str, Any], settings: dict[str, Any]) -> Results | None:
    """What a folder holds of these settings; None if there is no such file.

    Raises:
        ValueError: if the file holds results of another machine, other versions or settings.
    """
    path = folder / file_name(settings)
    if not path.exists():
        return None
    held = from_json(path.read_text(encoding="utf-8"))
    if (held.machine, held.settings) != (machine, settings):
        raise ValueError(
            f"{path} holds results of another machine, version or setting: "
            "choose another --out or delete it"
        )
    return held


def to_json(results: Results) -> str:
    """The text of a results file."""
    return json.dumps({"schema": _SCHEMA, **dataclasses.asdict(results)}, indent=1) + "\n"


def from_json(text: str) -> Results:
    """Results from the text of a file.

    Raises:
        ValueError: for another schema than this version writes.
    """
    data = json.loads(text)
    schema = data.pop("schema", None)
    if schema != _SCHEMA:
        raise ValueError(f"results of schema {schema!r}: this version reads {_SCHEMA}")
    cases = [
        CaseResult(**{**case, "rows": [Row(**row) for row in case["rows"]]})
        for case in data.pop("cases")
    ]
    return Results(**data, cases=cases)


def save(results: Results, folder: Path, order: list[str], replace: str = "cases") -> Path:
    """Writes results to their file in a folder, in the place of what it has of them.

    Args:
        results: what was measured.
        folder: made if it is not there.
        order: ids of all cases, in the order that the file keeps.
        replace: "cases"; "rows" where only some contenders ran: the other rows of their cases
            stay, and rows of two runs say beside what time of sparsekern they were measured;
            "memory" where nothing else was measured: it goes into the rows that are there.

    Raises:
        ValueError: if the file holds results of another machine or other versions, or is missing
            where only memory was measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / results.file_name
    kept: list[CaseResult] = []
    fresh = {case.id: case for case in results.cases}
    old = load_same(folder, results.machine, results.settings)
    if replace == "memory":
        if old is None:
            raise ValueError(f"{path} is not there: memory alone is added to times that are")
        for case in old.cases:
            _add_memory(case, fresh.get(case.id))
        return _write(path, old)
    if old is not None:
        kept = [case for case in old.cases if case.id not in fresh]
        for case in old.cases if replace == "rows" else ():
            if case.id in fresh:
                fresh[case.id] = _with_older_rows(fresh[case.id], case)
    merged = sorted(
        [*kept, *fresh.values()],
        key=lambda case: order.index(case.id) if case.id in order else len(order),
    )
    return _write(path, dataclasses.replace(results, cases=merged))


def _write(path: Path, results: Results) -> Path:
    """Whole or not at all, whatever ends the process meanwhile."""
    part = path.with_suffix(".part")
    part.write_text(to_json(results), encoding="utf-8")
    os.replace(part, path)
    return path


def _add_memory(case: CaseResult, measured: CaseResult | None) -> None:
    for row in measured.rows if measured is not None else ():
        known = case.row(row.name)
        if known is not None and row.extra_bytes is not None:
            known.extra_bytes = row.extra_bytes


def _with_older_rows(new: CaseResult, old: CaseResult) -> CaseResult:
    """Both in one: sparsekern's row from the run that timed it more often, else the newest ones.

    Rows of the other run say beside what time of sparsekern they were measured.
    """
    is_new_first = new.rows[0].samples >= old.rows[0].samples
    first, second = (new, old) if is_new_first else (old, new)
    beside = {"seconds": second.rows[0].seconds, **second.measured}
    replaced = {row.name for row in new.rows[1:]}
    rows = []
    for case in (first, second):
        kept = [row for row in case.rows[1:] if case is new or row.name not in replaced]
        if case is second:
            kept = [dataclasses.replace(row, beside=row.beside or beside) for row in kept]
        rows += kept
    return dataclasses.replace(first, rows=[first.rows[0], *rows])


def load_folder(folder: Path) -> list[Results]:
    """All results of a folder, by file name."""
    return [from_json(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
