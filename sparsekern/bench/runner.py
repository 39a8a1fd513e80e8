"""Runs cases: the gate first, then interleaved timing, then memory in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import dispatch
from . import floor, gate, inputs, machine, memory
from .case import AnyCase, Case, CaseHead, Contender, Outputs, SpecialCase
from .results import CaseResult, Results, Row
from .settings import Settings
from .timing import interleave, once, summarise

_MEMORY_SECONDS = 600.0  # a memory measurement that takes longer than this is given up


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contenders(case: CaseHead, settings: Settings) -> list[Contender]:
    """Who takes part: sparsekern, and the baselines that ``--compare`` leaves in.

    The plain-PyTorch reference is left out where it is what sparsekern itself would run.
    """
    ours, *others = case.contenders
    if settings.compare is not None:
        others = [other for other in others if other.name in settings.compare]
    if settings.resolved_backend == "reference":
        others = [other for other in others if other.name != "reference"]
    return [ours, *others]


def run(
    chosen: Sequence[AnyCase],
    settings: Settings,
    report: Callable[[CaseResult, Results], None] = lambda _case, _results: None,
) -> Results:
    """Measures cases one after the other.

    Args:
        chosen: from :func:`sparsekern.bench.cases.select`.
        settings: how.
        report: called with each case's result, and all so far, as soon as it is there.
    """
    rates = functools.cache(functools.partial(_rates, settings))
    results = Results(
        machine=machine.describe(),
        settings={
            "backend": settings.resolved_backend,
            "dtype": settings.dtype,
            "threads": settings.threads,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "quick": settings.quick,
        },
        floor=dataclasses.asdict(rates(settings.threads)),
    )
    for case in chosen:
        if settings.dtype not in case.dtypes:
            continue
        threads = case.threads or settings.threads
        with _threads(threads), dispatch.backend(settings.backend):
            result = _measure(case, settings, rates(threads))
        result.measured = machine.stamp()
        results.cases.append(result)
        report(result, results)
    return results


def _rates(settings: Settings, threads: int) -> floor.Floor:
    with _threads(threads):
        return floor.measure(settings.torch_dtype, settings.quick)


def _measure(case: AnyCase, settings: Settings, rates: floor.Floor) -> CaseResult:
    chosen = contenders(case, settings)
    if isinstance(case, SpecialCase):
        return case.measure(case, chosen, settings)
    return _measure_calls(case, chosen, settings, rates)


@dataclass
class _Entry:
    """A contender that can be timed: its row, a call per copy of the inputs, the time of one."""

    row: Row
    contender: Contender
    calls: list[Callable[[], Any]]
    estimate: float


def _measure_calls(
    case: Case, chosen: list[Contender], settings: Settings, rates: floor.Floor
) -> CaseResult:
    copies = inputs.copies(case, settings.torch_dtype)
    bound = case.bounds[settings.dtype]
    expected = case.oracle(copies[0])
    rows, entries = [], []
    for contender in chosen:
        row = Row(contender.name, contender.label, group=contender.group)
        rows.append(row)
        entry = _gate_one(row, contender, case, settings, copies, expected, bound)
        entries += [entry] if entry is not None else []
    del expected
    _time(entries, settings)
    del copies
    for entry in entries:
        entry.calls.clear()
    if case.tiny is not None:
        _time_host(entries, case.tiny(settings.torch_dtype), settings)
    if not settings.quick:
        for entry in entries:
            entry.row.extra_bytes = memory.measure(
                case.id, entry.row.name, settings, timeout=_MEMORY_SECONDS
            )
    result = CaseResult.of(case, rows, error_bound=bound)
    if case.cost is not None:
        element = settings.torch_dtype.itemsize
        result.operations, result.bytes = case.cost.operations, case.cost.bytes(element)
        result.floor_seconds, result.floor_limit = rates.seconds(case.cost, element)
        if case.threads is not None:
            result.rates = dataclasses.asdict(rates)
    return result


def _gate_one(
    row: Row,
    contender: Contender,
    case: Case,
    settings: Settings,
    copies: list[Any],
    expected: Outputs,
    bound: float,
) -> _Entry | None:
    """Builds a contender's calls and checks its result; None where it cannot be timed."""
    row.note = contender.missing_reason()
    if row.note:
        row.status = "absent"
        return None
    kept: list[Any] = []
    try:
        calls: list[Callable[[], Any]] = [
            functools.partial(contender.work, contender.prepared(copy)) for copy in copies
        ]
        seconds = once(lambda: kept.append(calls[0]()))
        if seconds < settings.effort.slow:  # the first call may have set things up
            seconds = once(calls[0])
        outputs = contender.outputs(kept.pop())
    except Exception as error:  # whatever another package raises is its result
        row.status, row.note = "failed", f"{type(error).__name__}: {error}".split("\n")[0][:200]
        return None
    if contender.same_work:
        row.error = gate.distance(case.error, outputs, expected)
        if not row.error <= bound:
            row.status, row.note = "wrong", f"error {row.error:.1e}, bound {bound:.0e}"
    return _Entry(row, contender, calls, seconds)


def _rotated(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def _time(entries: list[_Entry], settings: Settings) -> None:
    # The gate's call is the one sample of a contender that takes very long.
    repeated = [entry for entry in entries if entry.estimate <= settings.effort.once]
    timings = interleave(
        [_rotated(entry.calls) for entry in repeated],
        [entry.estimate for entry in repeated],
        settings.effort,
    )
    alone = [entry for entry in entries if entry.estimate > settings.effort.once]
    timings += [summarise([entry.estimate]) for entry in alone]
    for entry, timing in zip(repeated + alone, timings, strict=True):
        entry.row.set_timing(timing)


def _time_host(entries: list[_Entry], tiny: Any, settings: Settings) -> None:
    """The same calls on inputs that cost nothing: what remains is the host's work."""
    calls: list[Callable[[], Any]] = []
    estimates, rows = [], []
    for entry in entries:
        copy = inputs.clone(tiny)
        try:
            call = functools.partial(entry.contender.work, entry.contender.prepared(copy))
            once(call)
            estimates.append(once(call))
        except Exception:  # a package that refuses small inputs has no overhead to show
            continue
        calls.append(call)
        rows.append(entry.row)
    effort = dataclasses.replace(settings.effort, rounds=9, least=5, seconds=0.2)
    for row, timing in zip(rows, interleave(calls, estimates, effort), strict=True):
        row.host_seconds = timing.median
