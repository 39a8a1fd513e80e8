"""Measures launch configurations of the Triton kernels that read features, on the GPU at hand.

Each is found by timing whole similarity calls that use it, in several block sizes, numbers of warps
and pipeline stages about the shipped one: what another block size costs or saves elsewhere in the
call (fewer parts to add up) is in the time. Other choices are other orders of adding, so nothing
here runs unless it is asked for.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.similarity.triton import plan
from ..ops.tiled import device
from ..ops.tiled.configurations import (
    Configuration,
    Key,
    overriding,
    shipped,
)

_SPEC = (plan.LINEAR, 0.0, 0.0, plan.U_CENTRING, True)
# Every size of tile, and one beyond whole columns.
SAMPLES = (8, 16, 32, 64, 128, 256, 4096)
ELEMENTS = 1 << 26  # features of a call: several times what an L2 cache holds
_LAYERS = 8
_PRECISIONS = ("highest", "high", "medium")
_BLOCKS = (16, 512)  # the least that is tried, and what is too many
_WARPS = (4, 8)
_STAGES = (1, 2, 3, 4, 5, 6)
_REPEATS, _ROUNDS = 4, 5
_GAIN = 0.97  # of the shipped one's time, that another must stay under: less is noise
_SAME = 1e-2  # relative distance from the shipped one's result: beyond, the kernel is not right

Say = Callable[[str], None]
# Seconds on the device that a call takes, the mean of so many repetitions.
Seconds = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Workload:
    """A call that one configuration is timed with.

    Attributes:
        key: of the configuration.
        n: samples.
        dims: features per layer.
        dtype: of the features.
        precision: of float32 products, as torch.set_float32_matmul_precision takes it.
        backward: whether the backward pass is what is timed.
    """

    key: Key
    n: int
    dims: tuple[int, ...]
    dtype: torch.dtype
    precision: str
    backward: bool


def workloads(
    where: torch.device,
    dtypes: Sequence[torch.dtype],
    samples: Sequence[int] = SAMPLES,
    elements: int = ELEMENTS,
) -> list[Workload]:
    """One call for each configuration that features of these dtypes and samples are launched with.

    Args:
        where: the device.
        dtypes: of the features.
        samples: numbers of them.
        elements: features of a call, over all layers.
    """
    kind, processors = device.device_class(where), device.processors(where)
    found: dict[Key, Workload] = {}
    for dtype in dtypes:
        for precision in _PRECISIONS if dtype == torch.float32 else _PRECISIONS[:1]:
            with _precision(precision):
                operands = device.matrix_operands(dtype, kind, False)
            for n in samples:
                layers = _LAYERS if n <= 1024 else 2
                dims = (max(64, elements // (n * layers) // 64 * 64),) * layers
                sizes = plan.Sizes(n, dims, dtype.itemsize, operands)
                forward = plan.gram_plan(sizes, kind, processors, plan.LINEAR)
                back = plan.product_plan(sizes, forward, kind)
                for key, backward in (
                    ((forward.form, operands, forward.side), False),
                    ((back.form, back.operands, back.rows), True),
                ):
                    found.setdefault(key, Workload(key, n, dims, dtype, precision, backward))
    return list(found.values())


def measure(
    where: torch.device, todo: Sequence[Workload], seconds: Seconds, say: Say
) -> dict[Key, Configuration]:
    """The fastest configuration of each workload that is clearly faster than the shipped one.

    Args:
        where: the device.
        todo: what :func:`workloads` lists.
        seconds: times a call.
        say: told what is found.
    """
    found: dict[Key, Configuration] = {}
    kind = device.device_class(where)
    for workload in todo:
        name = f"{workload.key[0]}, {workload.key[1]}, {workload.key[2]} rows"
        start = shipped(kind, *workload.key)
        best, spent, before = _search(workload, start, where, seconds)
        if spent < _GAIN * before:
            found[workload.key] = best
            say(f"{name}: {_text(best)}, {1e6 * before:.0f} -> {1e6 * spent:.0f} us")
        elif math.isinf(before):
            say(f"{name}: {_text(start)} does not run here")
        else:
            say(f"{name}: {_text(start)} stays, {1e6 * before:.0f} us")
    return found


def _search(
    workload: Workload, start: Configuration, where: torch.device, seconds: Seconds
) -> tuple[Configuration, float, float]:
    """The fastest configuration, its seconds, and the first one's; infinite where it fails."""
    call = _call(workload, where)
    with _precision(workload.precision):
        wanted = _result(call, workload.key, start)
        times: dict[Configuration, float] = {}

        def spent(entry: Configuration) -> float:
            if entry not in times:
                times[entry] = _spent(call, workload.key, entry, wanted, seconds)
            return times[entry]

        blocks = [b for b in (start.block // 2, 2 * start.block) if b in range(*_BLOCKS)]
        about = (Configuration(b, w, start.stages) for b in (start.block, *blocks) for w in _WARPS)
        best = min((start, *about), key=spent)
        best = min((Configuration(best.block, best.warps, s) for s in _STAGES), key=spent)
        return best, spent(best), spent(start)


def _call(workload: Workload, where: torch.device) -> Callable[[], list[Tensor]]:
    from ..ops.similarity.triton import calls

    xs = [
        torch.randn(workload.n, d, device=where, dtype=torch.float32).to(workload.dtype)
        for d in workload.dims
    ]

    def forward() -> tuple[Tensor, Tensor]:
        return calls.group_sum(xs, [len(xs)], False, *_SPEC, True)

    if not workload.backward:
        return lambda: [forward()[0]]
    out, state = forward()
    needs = [True] * len(xs)
    return lambda: calls.group_sum_grad(
        torch.ones_like(out), xs, state, needs, [len(xs)], False, *_SPEC
    )


def _result(call: Callable[[], list[Tensor]], key: Key, entry: Configuration) -> list[Tensor]:
    """What a configuration gives; nothing where it cannot be compiled or launched."""
    from triton import TritonError

    try:
        with overriding({key: entry}):
            return [x.double() for x in call()]
    except (TritonError, RuntimeError):  # too much shared memory, registers, or no such code
        return []


def _spent(
    call: Callable[[], list[Tensor]],
    key: Key,
    entry: Configuration,
    wanted: Sequence[Tensor],
    seconds: Seconds,
) -> float:
    found = _result(call, key, entry)
    pairs = zip(found, wanted, strict=False)
    if not found or not all(float((a - b).norm()) <= _SAME * float(b.norm()) for a, b in pairs):
        return math.inf
    with overriding({key: entry}):
        return statistics.median(seconds(call, _REPEATS) for _ in range(_ROUNDS))


@contextlib.contextmanager
def _precision(wanted: str) -> Iterator[None]:
    """Sets the precision of float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _text(entry: Configuration) -> str:
    return f"block {entry.block}, {entry.warps} warps, {entry.stages} stages"
