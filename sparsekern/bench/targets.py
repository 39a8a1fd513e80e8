"""What each case is to reach, and whether the committed results reach it.

Every target is a number that the results hold: a ratio to a baseline, a share of the floor, a
time, bytes of memory, an error. The table that is made of them has a line for each, missed ones and
unmeasured ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from . import cases, table
from .case import OURS
from .results import CaseResult, Results, Row

_Found: TypeAlias = tuple[float, str]  # the number, and what it is about
_LARGE = ("256x1024x4096", "64x4096x4096")
_SMALL = "128x512x512"


@dataclass(frozen=True)
class Target:
    """One number that is wanted.

    Attributes:
        case: the cases that it is about, by the beginning of their ids, or one id that ends in
            "$"; several with spaces between them, of which the worst counts.
        wanted: what is wanted, in words.
        measure: gives the numbers of a case, with what each is about.
        bound: the number that is wanted at least, or at most.
        is_least: whether more is better.
        text: how a number is written.
    """

    case: str
    wanted: str
    measure: Callable[[CaseResult], Iterator[_Found]]
    bound: float
    is_least: bool
    text: Callable[[float], str]

    def concerns(self, case_id: str) -> bool:
        """Whether a case is one of these."""
        return any(
            case_id == name[:-1]
            if name.endswith("$")
            else case_id == name or case_id.startswith(name + "-")
            for name in self.case.split()
        )

    def line(self, results: Sequence[CaseResult]) -> tuple[str, str, str, str]:
        """Cases, wanted, measured, verdict."""
        found = [
            (value, about or case.id)
            for case in results
            if self.concerns(case.id)
            for value, about in self.measure(case)
        ]
        names = self.case.replace("$", "").replace(" ", ", ")
        if not found:
            return names, self.wanted, "", "not measured"
        value, about = (min if self.is_least else max)(found)
        met = value >= self.bound if self.is_least else value <= self.bound
        remarks = [about] if len(found) > 1 else []
        measured = sum(self.concerns(case.id) for case in results)
        known = sum(self.concerns(case_id) for case_id in cases.case_order())
        remarks += [f"{measured} of {known} cases measured"] if measured < known else []
        where = f" ({'; '.join(remarks)})" if remarks else ""
        return names, self.wanted, self.text(value) + where, "met" if met else "**missed**"


def _times(value: float) -> str:
    return f"{value:.3g}×"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _over(case: str, baseline: str, bound: float, said: str) -> Target:
    """A baseline is to take so many times sparsekern's time."""

    def measure(result: CaseResult) -> Iterator[_Found]:
        row = result.row(baseline)
        ratio = None if row is None else result.ratio(row)
        if ratio is not None:
            yield ratio, ""

    return Target(case, f"{said} takes ≥ {bound:g}×", measure, bound, True, _times)


def _never_slower(case: str, bound: float, said: str, ours: str = "") -> Target:
    """No baseline is to take less than so many times our time: of one row of ours, or the first."""

    def measure(result: CaseResult) -> Iterator[_Found]:
        own = result.row(ours) if ours else result.rows[0]
        own_ratio = 1.0 if not ours else None if own is None else result.ratio(own)
        for row in result.rows[1:]:
            ratio = result.ratio(row)
            is_peer = row.group != OURS and row.error is not None  # of the same work
            if ratio is not None and own_ratio and is_peer:
                yield ratio / own_ratio, f"{result.id}, {row.label}"

    return Target(case, said, measure, bound, True, _times)


def _of_ours(value: Callable[[CaseResult, Row], float | None]) -> Callable[..., Iterator[_Found]]:
    def measure(result: CaseResult) -> Iterator[_Found]:
        if result.rows and result.rows[0].status == "ok":
            found = value(result, result.rows[0])
            if found is not None:
                yield found, ""

    return measure


def _floor(case: str, bound: float) -> Target:
    share = _of_ours(lambda result, row: result.floor_share(row))
    return Target(case, f"≥ {100 * bound:g}% of the floor", share, bound, True, _percent)


def _seconds(case: str, bound: float) -> Target:
    seconds = _of_ours(lambda _result, row: row.seconds)
    return Target(case, f"≤ {table.time_text(bound)}", seconds, bound, False, table.time_text)


def _floors(case: str, bound: float) -> Target:
    floors = _of_ours(lambda result, row: 1 / share if (share := result.floor_share(row)) else None)
    return Target(case, f"≤ {bound:g} times the floor", floors, bound, False, _times)


def _error(case: str, bound: float) -> Target:
    error = _of_ours(lambda _result, row: row.error)
    return Target(case, f"error ≤ {bound:g}", error, bound, False, lambda e: f"{e:.0e}")


def _memory(case: str, bound: int, said: str) -> Target:
    memory = _of_ours(lambda _result, row: row.extra_bytes)
    return Target(case, said, memory, bound, False, lambda value: table.bytes_text(round(value)))


def _memory_share(case: str, baseline: str, bound: float, said: str) -> Target:
    def share(result: CaseResult, ours: Row) -> float | None:
        row = result.row(baseline)
        if row is None or not row.extra_bytes or ours.extra_bytes is None:
            return None
        return ours.extra_bytes / row.extra_bytes

    return Target(case, said, _of_ours(share), bound, False, _percent)


def _linear(kind: str, percent: str, shapes: Sequence[str] = (_SMALL, *_LARGE)) -> str:
    return " ".join(f"{kind}-{shape}-{percent}$" for shape in shapes)


_DENSE = "masked, then dense,"
_CONVOLUTIONS = ("r20-16", "r20-32", "r20-64", "r18-64", "r18-128", "r18-256", "r18-512")
_BLOCK_GRAMS = 9 * 128 * 128 * 4  # bytes: one Gram matrix per block

TARGETS: tuple[Target, ...] = (
    _over("S1$", "eager", 1.8, "eager"),
    _over("S1$", "eager_centred", 3, "eager, column-centred,"),
    _over("S1$", "torch_cka", 35, "torch_cka"),
    _floor("S1$", 0.75),
    _over("S2$", "eager", 2, "eager"),
    _over("S2$", "eager_backward", 1.4, "eager, own backward,"),
    _over("S2$", "authors", 70, "authors' formulation"),
    _memory("S2$", _BLOCK_GRAMS, f"memory ≤ the Grams, {_BLOCK_GRAMS / 2**20:.1f} MiB"),
    _over("S3$", "eager", 3, "eager"),
    _over("S4$", "eager", 1.4, "eager"),
    _over("S5$", "eager", 3, "eager"),
    _error("S5$", 1e-5),
    _memory_share("S5$", "eager", 0.25, "memory ≤ 25% of eager's"),
    _seconds("O1$", 6e-6),
    _seconds("O1-grad$", 15e-6),
    Target(
        "R1$",
        "≤ 1% of the step",
        _of_ours(lambda _result, row: row.step_share),
        0.01,
        False,
        _percent,
    ),
    _never_slower("M1", 1 / 1.05, "every peer takes ≥ 0.95×, at any sparsity"),
    _never_slower("M1", 1 / 1.05, "the same, values given to ours too", ours="compressed"),
    _over(_linear("M1", "90", _LARGE), "masked_dense", 3, _DENSE),
    _over(_linear("M1", "98", _LARGE), "masked_dense", 8, _DENSE),
    _over(_linear("M2", "90"), "masked_dense", 2.2, _DENSE),
    _over(_linear("M2", "95"), "masked_dense", 3.5, _DENSE),
    _over(_linear("M2", "98"), "masked_dense", 5, _DENSE),
    _never_slower(
        " ".join(_linear("M2", percent) for percent in ("80", "90", "95", "98", "99", "99.8")),
        1.0,
        "every peer takes ≥ 1×, from 80% on",
    ),
    _never_slower(
        " ".join(_linear("M2", percent) for percent in ("80", "90", "95", "98", "99", "99.8")),
        1.0,
        "the same, values given to ours too",
        ours="packed_features",
    ),
    _over(_linear("M3", "90"), "masked_dense", 1.6, _DENSE),
    _over(
        " ".join(_linear("M3", percent) for percent in ("95", "98", "99", "99.8")),
        "masked_dense",
        1.8,
        _DENSE,
    ),
    _never_slower("M4", 1 / 1.05, "masked, then dense, takes ≥ 0.95×, at any sparsity"),
    *(
        _over(
            " ".join(f"M4-{name}-{percent}$" for name in _CONVOLUTIONS),
            "masked_dense",
            bound,
            _DENSE,
        )
        for percent, bound in (("95", 1.5), ("99", 2.5))
    ),
    _seconds("pattern-4096-90$", 8e-3),
    _over("T1$", "torch_kthvalue", 10, "torch.kthvalue"),
    _over("T1$", "numpy_partition", 3, "numpy.partition"),
    _over("P1$", "eager_kthvalue", 10, "eager with torch.kthvalue"),
    _over("P1$", "eager_sort", 40, "eager with torch.sort, as published,"),
    _floors("D1", 2),
)
# On one GPU; there are no results of one.
GPU_TARGETS: tuple[tuple[str, str], ...] = (
    ("G1", "matrix of 20 layers: ≥ 75% of copy bandwidth; torch_cka's formula ≥ 20×, eager ≥ 3×"),
    ("G2", "CKA-SR loss and gradient: ≤ 1.5 times the bytes floor, ≤ 1% of a training step"),
    ("G3", "Gram matrices in bfloat16 and tf32: torch.mm ≥ 1.6×"),
    ("G4", "masked linear, batch ≥ 256: dense-masked ≥ 0.95×, float32 dense ≥ 2× at 98%"),
    ("G5", "masked linear, batch 1 to 16, bfloat16: dense ≥ 3× at 90%, ≥ 5× at 95%"),
    ("G6", "threshold, HyperSparse, dead neurons: ≤ 2 times the bytes floor"),
)


def markdown(all_results: Sequence[Results]) -> str:
    """The table of all targets: one part per results file on the CPU, and the GPU's."""
    parts = []
    for results in all_results:
        settings = results.settings
        if settings.get("device", "cpu") == "cpu" and settings["dtype"] == "float32":
            parts.append(_table(results))
    return "\n\n".join([*parts, _gpu_table()])


def _table(results: Results) -> str:
    threads = results.settings["threads"]
    lines = [target.line(results.cases) for target in TARGETS]
    met = sum(line[3] == "met" for line in lines)
    missed = sum("missed" in line[3] for line in lines)
    rest = len(lines) - met - missed
    said = f"{met} of {len(lines)} met, {missed} missed" + (f", {rest} not measured" * bool(rest))
    days = sorted({case.measured.get("date", "") for case in results.cases} - {""})
    when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
    head = (
        f"**CPU, {threads} threads, float32**: {said}. {results.machine['processor']}, ISA "
        f"{results.machine['isa']}, {when}. `×` is a time over sparsekern's in the same run; of "
        "several cases the worst is shown. Again with `sparsekern bench --threads "
        f"{threads} --case` and a case's name."
    )
    return "\n".join(
        [
            head,
            "",
            "| cases | wanted | measured | |",
            "|---|---|---:|---|",
            *(f"| {' | '.join((_short(line[0]), *line[1:]))} |" for line in lines),
        ]
    )


def _short(names: str) -> str:
    """Ids of one kind at several shapes by their kind and percentages alone."""
    parts = names.split(", ")
    if len(parts) < 3:
        return names
    kind, percents = parts[0].split("-")[0], dict.fromkeys(p.rsplit("-", 1)[1] for p in parts)
    return f"{kind} at {', '.join(percents)}%"


def _gpu_table() -> str:
    return "\n".join(
        [
            "**GPU**: nothing has been measured on one yet. "
            "Cases: `sparsekern bench --suite gpu --device cuda`.",
            "",
            "| cases | wanted | measured | |",
            "|---|---|---:|---|",
            *(f"| {name} | {wanted} |  | not measured |" for name, wanted in GPU_TARGETS),
        ]
    )
