"""Runs cases: the gate first, then interleaved timing, then memory in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import cases, contenders, floor, gate, inputs, machine, memory, overhead, training_step
from .cases import Case, FeatureCase, OverheadCase
from .contenders import OURS
from .results import CaseResult, Results, Row
from .timing import FULL, QUICK, Effort, interleave, once, summarise

DTYPES = ("float32", "float64", "bfloat16", "float16")
_MEMORY_SECONDS = 600.0  # a memory measurement that takes longer than this is given up


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        backend: what sparsekern runs on: "auto", "cpu" or "reference".
        dtype: one of :data:`DTYPES`.
        threads: of torch, the compiled core and every baseline.
        quick: small shapes, few rounds, no memory measurement.
        compare: names of the baselines to keep, or None for all.
    """

    backend: str = "auto"
    dtype: str = "float32"
    threads: int = 1
    quick: bool = False
    compare: tuple[str, ...] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def effort(self) -> Effort:
        """How much time to spend on timing."""
        return QUICK if self.quick else FULL


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    chosen: list[Case],
    settings: Settings,
    report: Callable[[CaseResult, Results], None] = lambda _case, _results: None,
) -> Results:
    """Measures cases one after the other.

    Args:
        chosen: from :func:`sparsekern.bench.cases.select`.
        settings: how.
        report: called with each case's result, and all so far, as soon as it is there.
    """
    with _threads(settings.threads):
        rates = floor.measure(settings.torch_dtype, settings.quick)
        results = Results(
            machine=machine.describe(),
            settings={
                "backend": contenders.resolved(settings.backend),
                "dtype": settings.dtype,
                "threads": settings.threads,
                "matmul_precision": torch.get_float32_matmul_precision(),
                "quick": settings.quick,
            },
            floor=dataclasses.asdict(rates),
        )
        for case in chosen:
            result = _measure(case, settings, rates)
            result.measured = machine.stamp()
            results.cases.append(result)
            report(result, results)
    return results


def _measure(case: Case, settings: Settings, rates: floor.Floor) -> CaseResult:
    names = contenders.baseline_names(case, settings.compare, settings.backend)
    if isinstance(case, FeatureCase):
        return _measure_features(case, settings, rates, [OURS, *names])
    if isinstance(case, OverheadCase):
        return overhead.measure(case, names, settings.backend, settings.quick)
    return training_step.measure(case, names, settings.backend, settings.quick)


def _measure_features(
    case: FeatureCase, settings: Settings, rates: floor.Floor, names: list[str]
) -> CaseResult:
    features = inputs.copies(case, settings.torch_dtype)
    bound = case.error_bound(settings.dtype)
    expected = gate.oracle(case, features[0])
    rows: list[Row] = []
    runnable: list[tuple[Row, contenders.Call, float]] = []
    for name in names:
        row, call, estimate = _gate_one(name, case, settings, features[0], expected, bound)
        rows.append(row)
        if call is not None:
            runnable.append((row, call, estimate))
    del expected
    _time(runnable, features, settings.effort)
    floor_seconds, limit = rates.seconds(case, features[0][0].element_size())
    del features
    if not settings.quick:
        for row, _, _ in runnable:
            row.extra_bytes = memory.measure(
                case.id,
                row.name,
                quick=settings.quick,
                backend=settings.backend,
                dtype=settings.dtype,
                threads=settings.threads,
                timeout=_MEMORY_SECONDS,
            )
    return CaseResult(
        id=case.id,
        suite=case.suite,
        title=case.title,
        reason=case.reason,
        rows=rows,
        floor_seconds=floor_seconds,
        floor_limit=limit,
        error_bound=bound,
    )


def _gate_one(
    name: str,
    case: FeatureCase,
    settings: Settings,
    features: list[Tensor],
    expected: list[Tensor],
    bound: float,
) -> tuple[Row, contenders.Call | None, float]:
    """Builds a contender and checks its result; the call is None where it cannot be timed."""
    contender = contenders.build(name, case, settings.backend)
    row = Row(name, contender.label)
    call = contender.call
    if call is None:
        row.status, row.note = "absent", contender.missing
        return row, None, 0.0
    kept: list[list[Tensor]] = []
    try:
        seconds = once(lambda: kept.append(call(features)))
        if seconds < settings.effort.slow:  # the first call may have set things up
            seconds = once(lambda: call(features))
    except Exception as error:  # whatever another package raises is its result
        row.status, row.note = "failed", f"{type(error).__name__}: {error}".split("\n")[0][:200]
        return row, None, 0.0
    row.error = gate.error(case, kept[0], expected)
    if not row.error <= bound:
        row.status, row.note = "wrong", f"error {row.error:.1e}, bound {bound:.0e}"
    return row, call, seconds


def _time(
    runnable: list[tuple[Row, contenders.Call, float]],
    features: list[list[Tensor]],
    effort: Effort,
) -> None:
    def rotated(call: contenders.Call) -> Callable[[], object]:
        turns = itertools.cycle(features)
        return lambda: call(next(turns))

    # The gate's call is the one sample of a contender that takes very long.
    repeated = [entry for entry in runnable if entry[2] <= effort.once]
    calls = [rotated(call) for _, call, _ in repeated]
    timings = interleave(calls, [seconds for _, _, seconds in repeated], effort)
    alone = [entry for entry in runnable if entry[2] > effort.once]
    timings += [summarise([seconds]) for _, _, seconds in alone]
    for (row, _, _), timing in zip(repeated + alone, timings, strict=True):
        row.seconds, row.low, row.high = timing.median, timing.low, timing.high
        row.samples = timing.samples


def case_order() -> list[str]:
    """Ids of all cases in registry order."""
    return [case.id for case in cases.CASES]
