"""The choice between the dense and the sparse algorithm: its form, and that it is a good one."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsekern import native
from sparsekern.ops.masked import choice
from sparsekern.ops.masked import rates as rates_of
from sparsekern.ops.masked.rates import DEFAULTS
from sparsekern.tuning import corrections, grid

from ..conftest import compiled_only

FOLDER = Path(__file__).parent / "grids"
ARGUMENTS = {
    "part": "forward",
    "batch": 128,
    "rows": 1024,
    "columns": 1024,
    "dtype": torch.float32,
    "threads": 2,
    "rates": DEFAULTS["avx512"].float32,
}
CONVOLUTION = {
    "part": "forward",
    "x": (128, 32, 16, 16),
    "weight": (32, 32, 3, 3),
    "out": (16, 16),
    "dtype": torch.float32,
    "threads": 2,
    "rates": DEFAULTS["avx512"].float32,
}


def chosen(nnz: int, **changes: object) -> str:
    return choice.algorithm(nnz=nnz, **{**ARGUMENTS, **changes})  # type: ignore[arg-type]


def chosen_convolution(nnz: int, **changes: object) -> str:
    arguments = {**CONVOLUTION, **changes}
    return choice.convolution_algorithm(nnz=nnz, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", choice.PARTS)
@pytest.mark.parametrize("isa", DEFAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_more_sparsity_never_brings_the_dense_algorithm_back(
    part: str, isa: str, dtype: torch.dtype
) -> None:
    for batch in (1, 16, 128, 2048):
        for size in (64, 1024, 8192):
            sizes = {"batch": batch, "rows": size, "columns": size}
            steps = range(0, size * size + 1, size * size // 64)
            found = [
                chosen(nnz, part=part, rates=DEFAULTS[isa].of(dtype), dtype=dtype, **sizes)
                for nnz in steps
            ]
            assert found == sorted(found, reverse=True)  # sparse ones, then dense ones
    for images in (1, 20, 128):
        changes = {
            "part": part,
            "rates": DEFAULTS[isa].of(dtype),
            "dtype": dtype,
            "x": (images, 32, 16, 16),
        }
        found = [chosen_convolution(nnz, **changes) for nnz in range(0, 9217, 128)]
        assert found == sorted(found, reverse=True)
        for size in (4, 28):
            sizes = {"x": (images, 96, size, size), "weight": (96, 1, 3, 3), "out": (size, size)}
            found = [chosen_convolution(nnz, **{**changes, **sizes}) for nnz in range(0, 865, 9)]
            assert found == sorted(found, reverse=True)


def test_a_full_mask_is_a_dense_product_and_an_almost_empty_one_a_sparse() -> None:
    for part in choice.PARTS:
        assert chosen(1024 * 1024, part=part) == "dense"
        assert chosen(1024 * 10, part=part) == "sparse"
        assert chosen_convolution(9216, part=part) == "dense"
        assert chosen_convolution(92, part=part) == "sparse"


@pytest.mark.parametrize(("kept", "strip"), [(2, 32), (1, 16)])
def test_groups_of_columns_speed_the_product_up_and_nothing_else(kept: int, strip: int) -> None:
    nnz = 1024 * 1024 * kept // 4
    assert choice.in_blocks("forward", nnz, (0, 8, 12)) == 8
    found = choice.in_blocks("forward", nnz, (strip, 0, 0))
    assert 0 < found <= nnz
    assert choice.in_blocks("weight", nnz, (strip, 8, 12)) == 8
    assert choice.in_blocks("input", nnz, (strip, 8, 12)) == 12
    rates = DEFAULTS["avx2"].float32
    layer = (256, 1024, 1024, nnz, torch.float32, 2, rates)
    times = [choice.sparse_nanoseconds("forward", *layer, blocks) for blocks in (0, found)]
    assert 0.65 < times[1] / times[0] < 0.95


@pytest.mark.parametrize(
    ("channels", "dtype", "part", "found"),
    [
        (4, torch.float32, "weight", "sparse"),  # torch's dense one takes four times as long
        (8, torch.bfloat16, "weight", "sparse"),
        (8, torch.bfloat16, "forward", "dense"),
        (2, torch.bfloat16, "forward", "sparse"),
    ],
)
def test_small_groups(channels: int, dtype: torch.dtype, part: str, found: str) -> None:
    weight = (128, channels, 3, 3)
    algorithm = choice.convolution_algorithm(
        part,
        (16, 128, 28, 28),
        weight,
        (28, 28),
        nnz=math.prod(weight) // 2,
        dtype=dtype,
        threads=2,
        rates=rates_of.shipped("avx512", 2).of(dtype),
    )
    assert algorithm == found


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="part must be one of forward, input, weight, got 'bias'"):
        chosen(1, part="bias")
    with pytest.raises(ValueError, match="part must be one of forward, input, weight, got 'bias'"):
        chosen_convolution(1, part="bias")


# Measured by `sparsekern tune --check --out FILE`, with SPARSEKERN_ISA, --threads and --dtype for
# each, on the processor that the shipped rates are from; where two algorithms take about as long as
# each other, several times. Of each: the share of choices within 1.05 of the faster algorithm that
# is held, what all together may lose on average, and the most that one may lose.
GRIDS = {
    "avx512-float32": (0.985, 1.003, 1.65),
    "avx512-float32-1-thread": (0.99, 1.003, 1.15),
    "avx512-bfloat16": (0.975, 1.005, 1.55),
    "avx2-float32": (0.99, 1.003, 1.3),
    "portable-float32": (0.975, 1.005, 1.55),
}


def test_every_grid_is_held_and_whole() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(GRIDS)
    whole = [(layer, part) for layer in grid.LAYERS for part in grid.parts_of(layer)]
    for name in GRIDS:
        measured = grid.Grid.load(FOLDER / f"{name}.json")
        assert [(row.layer, row.part) for row in measured.rows] == whole


@pytest.mark.parametrize("name", GRIDS)
def test_shipped_rates_lead_to_the_faster_algorithm_of_a_measured_grid(name: str) -> None:
    measured = grid.Grid.load(FOLDER / f"{name}.json")
    rates = rates_of.shipped(measured.isa, measured.threads).of(getattr(torch, measured.dtype))
    losses = list(measured.losses(rates))
    assert losses
    ratios = [loss.ratio for loss in losses]
    told = "\n".join(str(loss) for loss in losses if loss.ratio > 1.05)
    share, mean, worst = GRIDS[name]
    assert sum(ratio <= 1.05 for ratio in ratios) >= share * len(ratios), told
    assert statistics.fmean(ratios) <= mean, told
    assert max(ratios) <= worst, told
    # A choice is worth having: either algorithm for everything loses more, and so does the model
    # without its corrections.
    every = [row.ratio(i) for row in measured.rows for i in range(len(measured.sparsities))]
    plain = [loss.ratio for loss in measured.losses(rates._replace(corrections=()))]
    for others in ([max(1, r) for r in every], [max(1, 1 / r) for r in every], plain):
        assert statistics.fmean(ratios) < statistics.fmean(others)


def test_shipped_corrections_are_those_of_the_grids() -> None:
    for name in GRIDS:
        measured = grid.Grid.load(FOLDER / f"{name}.json")
        shipped = rates_of.shipped(measured.isa, measured.threads)
        rates = shipped.of(getattr(torch, measured.dtype))
        assert rates.corrections == corrections.fit([measured], rates), name


def least_seconds(call: Callable[[str], object], rounds: int) -> dict[str, float]:
    """By algorithm, in turn."""
    best = dict.fromkeys(grid.ALGORITHMS, float("inf"))
    for _ in range(rounds):
        for name in best:
            start = time.perf_counter()
            call(name)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


# Small enough to be timed in milliseconds, and sparsities at which one algorithm is well ahead.
TIMED = [
    (grid.Layer((16, 512), (512, 512)), (0.0, 0.9, 0.99)),
    (grid.Layer((64, 1024), (1024, 1024)), (0.0, 0.9, 0.99)),
    (grid.Layer((512, 256), (1024, 256)), (0.0, 0.9, 0.99)),
    (grid.Layer((1, 1024), (1024, 1024)), (0.0, 0.99)),
    (grid.Layer((32, 32, 16, 16), (32, 32, 3, 3)), (0.95, 0.99)),
    (grid.Layer((32, 16, 32, 32), (32, 16, 3, 3), stride=2), (0.95, 0.99)),
    (grid.Layer((4, 64, 28, 28), (64, 64, 3, 3)), (0.95, 0.99)),
]


@compiled_only
@pytest.mark.skipif(
    os.environ.get("SPARSEKERN_TIMING") != "1",
    reason="times calls: SPARSEKERN_TIMING=1 on a machine with nothing else to do",
)
@pytest.mark.parametrize(("layer", "sparsities"), TIMED, ids=str)
def test_the_choice_is_within_a_twentieth_of_the_best(
    layer: grid.Layer, sparsities: tuple[float, ...]
) -> None:
    torch.use_deterministic_algorithms(False)  # which fills fresh memory
    isa, threads = str(native.cpu().isa()), torch.get_num_threads()
    rates = rates_of.rates(isa, threads).float32
    for sparsity in sparsities:
        for part, call in grid.parts(layer, sparsity, torch.float32).items():
            chosen = layer.chosen(part, layer.kept(sparsity), torch.float32, threads, rates)
            # Other work on the machine only adds time: the least of more and more rounds, and a
            # verdict only when it lasts.
            for attempt in range(5):
                times = least_seconds(call, 3 << attempt)
                if times[chosen] <= 1.05 * min(times.values()):
                    break
            else:
                shown = ", ".join(f"{name} {1e6 * spent:.0f} µs" for name, spent in times.items())
                pytest.fail(f"{part} at {sparsity}: {shown}, chosen: {chosen}")
