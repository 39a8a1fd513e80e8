"""Runs cases: the gate first, then interleaved timing, then memory in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import dispatch
from . import floor, gate, inputs, machine, memory
from .case import AnyCase, Case, CaseHead, Contender, Outputs, SpecialCase
from .cuda_timing import CudaTimer
from .inputs import to_device
from .results import CaseResult, Results, Row
from .settings import Settings
from .timing import interleave, once, summarise

_MEMORY_SECONDS = 300.0  # a memory measurement that takes longer than this is given up


@contextlib.contextmanager
def pinned_threads(count: int) -> Iterator[None]:
    """Torch's number of threads inside the ``with`` block."""
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
    settle_allocator()
    rates = functools.cache(functools.partial(_rates, settings))
    first = rates(settings.threads)
    results = Results(
        machine=machine.describe(),
        settings=settings.described,
        floor={} if first is None else dataclasses.asdict(first),
    )
    with memory.Server() as server:
        for case in chosen:
            is_call = isinstance(case, Case)
            if settings.dtype not in case.dtypes or (settings.memory == "only" and not is_call):
                continue
            threads, start = case.threads or settings.threads, time.perf_counter()
            with pinned_threads(threads), dispatch.backend(settings.backend):
                result = _measure(case, settings, rates(threads), server)
            result.measured, result.took = machine.stamp(), time.perf_counter() - start
            results.cases.append(result)
            report(result, results)
    return results


# Just below the largest block that glibc's malloc ever keeps for itself (32 MiB with its header).
_LARGEST_KEPT = (32 << 20) - (64 << 10)


def settle_allocator() -> None:
    """Brings malloc to where it is in any larger program: it keeps freed blocks up to 32 MiB.

    glibc's thresholds for handing memory back to the system grow with the largest block that was
    freed so far. Until then whoever frees a few megabytes pays for fresh pages in the next call,
    and who that is depends on which contender ran before.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8, device="cpu")  # and freed at once


def _rates(settings: Settings, threads: int) -> floor.Floor | None:
    if not (settings.timed and settings.extras) or settings.memory == "only":
        return None
    with pinned_threads(threads):
        return floor.measure(settings.torch_dtype, settings.quick, settings.device)


def _measure(
    case: AnyCase, settings: Settings, rates: floor.Floor | None, server: memory.Server
) -> CaseResult:
    chosen = contenders(case, settings)
    if isinstance(case, SpecialCase):
        if not settings.timed:
            return CaseResult.of(case, [])
        return case.measure(case, chosen, settings)
    if settings.memory == "only":
        result = CaseResult.of(case, [Row(c.name, c.label, group=c.group) for c in chosen])
    else:
        result = _measure_calls(case, chosen, settings, rates)
    if settings.timed and settings.measures_memory:
        for row in result.rows:
            if row.status in ("ok", "wrong"):
                row.extra_bytes = server.measure(case.id, row.name, settings, _MEMORY_SECONDS)
    return result


@dataclass
class Entry:
    """A contender that can be timed: its row, a call per copy of the inputs, the time of one."""

    row: Row
    contender: Contender
    calls: list[Callable[[], Any]]
    estimate: float


def _measure_calls(
    case: Case, chosen: list[Contender], settings: Settings, rates: floor.Floor | None
) -> CaseResult:
    on_gpu = settings.device == "cuda"
    # On a GPU the caches are flushed instead of rotating copies.
    make = inputs.copies if settings.timed and not on_gpu else inputs.one
    copies = to_device(make(case, settings.torch_dtype), settings.device)
    bound = case.bounds[settings.dtype]
    expected = case.oracle(copies[0])
    rows, entries = [], []
    for contender in chosen:
        row = Row(contender.name, contender.label, group=contender.group)
        rows.append(row)
        entry = gate_one(row, contender, case, settings, copies, expected)
        entries += [entry] if entry is not None else []
    del expected
    if not settings.timed:
        return CaseResult.of(case, rows, error_bound=bound)
    if on_gpu:
        _time_on_gpu(entries, settings)
    else:
        _time(entries, settings)
    del copies
    for entry in entries:
        entry.calls.clear()
    if settings.extras and not on_gpu and case.tiny is not None:
        _time_host(entries, case.tiny(settings.torch_dtype), settings)
    result = CaseResult.of(case, rows, error_bound=bound)
    if case.cost is not None and rates is not None:
        element = settings.torch_dtype.itemsize
        result.operations, result.bytes = case.cost.operations, case.cost.bytes(element)
        result.floor_seconds, result.floor_limit = rates.seconds(case.cost, element)
        if case.threads is not None:
            result.rates = dataclasses.asdict(rates)
    return result


def gate_one(
    row: Row,
    contender: Contender,
    case: Case,
    settings: Settings,
    copies: list[Any],
    expected: Outputs,
) -> Entry | None:
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
        if seconds <= settings.effort.once:  # the first call may have set things up
            seconds = once(calls[0])
        outputs = contender.outputs(kept.pop())
    except Exception as error:  # whatever another package raises is its result
        row.status, row.note = "failed", f"{type(error).__name__}: {error}".split("\n")[0][:200]
        return None
    bound = case.bounds[settings.dtype]
    if contender.same_work:
        row.error = gate.distance(case.error, outputs, expected)
        if not row.error <= bound:
            row.status, row.note = "wrong", f"error {row.error:.1e}, bound {bound:.0e}"
    return Entry(row, contender, calls, seconds)


def rotated(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    """One function that runs the calls in turn."""
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def staggered(all_calls: list[list[Callable[[], Any]]]) -> list[list[Callable[[], Any]]]:
    """Every contender's calls, from another copy of the inputs on than the one's before it.

    All work on the same copies. Were each to begin with the first, who follows another in a round
    would find in cache what that one has just read.
    """
    result = []
    for index, calls in enumerate(all_calls):
        first = index * max(1, len(calls) // len(all_calls)) % len(calls)
        result.append(calls[first:] + calls[:first])
    return result


def _time(entries: list[Entry], settings: Settings) -> None:
    # The gate's call is the one sample of a contender that takes very long.
    repeated = [entry for entry in entries if entry.estimate <= settings.effort.once]
    timings = interleave(
        [rotated(calls) for calls in staggered([entry.calls for entry in repeated])],
        [entry.estimate for entry in repeated],
        settings.effort,
    )
    alone = [entry for entry in entries if entry.estimate > settings.effort.once]
    timings += [summarise([entry.estimate]) for entry in alone]
    for entry, timing in zip(repeated + alone, timings, strict=True):
        entry.row.set_timing(timing)


def _time_on_gpu(entries: list[Entry], settings: Settings) -> None:
    """Device time, host time until the call returns, and peak memory, one copy of the inputs."""
    timer = CudaTimer()
    calls, estimates = [], []
    for entry in entries:
        call = entry.calls[0]
        seconds = timer.device_seconds(call, 1)  # the gate's clock did not wait for the device
        is_slow = seconds > settings.effort.slow
        entry.row.host_seconds = timer.host_seconds(call, 1 if is_slow else 9)
        entry.row.extra_bytes = timer.extra_bytes(call, _output_bytes(entry.contender))
        if not is_slow:
            call = timer.captured(call)
            seconds = timer.device_seconds(call, 1)
        calls.append(call)
        estimates.append(seconds)
    timings = interleave(calls, estimates, settings.effort, timer.device_seconds)
    for entry, timing in zip(entries, timings, strict=True):
        entry.row.set_timing(timing)


def _output_bytes(contender: Contender) -> Callable[[Any], int]:
    return lambda returned: inputs.nbytes(contender.outputs(returned))


def _time_host(entries: list[Entry], tiny: Any, settings: Settings) -> None:
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
    effort = dataclasses.replace(settings.effort, rounds=9, least=5, budget=0.5)
    for row, timing in zip(rows, interleave(calls, estimates, effort), strict=True):
        row.host_seconds = timing.median
