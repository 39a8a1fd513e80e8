"""The choice between the dense and the sparse algorithm: its form, and that it is a good one."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern import native
from sparsekern.ops.masked import calls, choice
from sparsekern.ops.masked.rates import DEFAULTS

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


def test_a_full_mask_is_a_dense_product_and_an_almost_empty_one_a_sparse() -> None:
    for part in choice.PARTS:
        assert chosen(1024 * 1024, part=part) == "dense"
        assert chosen(1024 * 10, part=part) == "sparse"
        assert chosen_convolution(9216, part=part) == "dense"
        assert chosen_convolution(92, part=part) == "sparse"


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="part must be one of forward, input, weight, got 'bias'"):
        chosen(1, part="bias")
    with pytest.raises(ValueError, match="part must be one of forward, input, weight, got 'bias'"):
        chosen_convolution(1, part="bias")


# (batch, columns, rows), on either side of the caches; small enough to be timed in milliseconds.
GRID = [(16, 512, 512), (128, 512, 512), (64, 1024, 1024), (512, 256, 1024), (1, 1024, 1024)]
# Where masks live, and none at all. Between 30% and 75% both algorithms take about the same time
# on these shapes, and which is ahead changes from run to run.
SPARSITIES = (0.0, 0.9, 0.95, 0.99)


def parts(
    x: Tensor, weight: Tensor, grad: Tensor, pattern: sk.SparsityPattern
) -> dict[str, Callable[[bool], object]]:
    """Each part of a layer's work, by either algorithm."""
    tensors = pattern.tensors
    values = calls.masked_linear(x, weight, None, tensors, True, True)[1]

    def backward(sparse: bool, needs: list[bool]) -> object:
        return calls.masked_linear_grad(
            grad, x, weight, values, tensors, needs, False, sparse, sparse
        )

    return {
        "forward": lambda sparse: calls.masked_linear(x, weight, None, tensors, sparse, True),
        "input": lambda sparse: backward(sparse, [True, False, False]),
        "weight": lambda sparse: backward(sparse, [False, True, False]),
    }


def least_seconds(call: Callable[[bool], object], rounds: int) -> list[float]:
    """Of the dense algorithm and of the sparse one, in turn."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for sparse in (False, True):
            start = time.perf_counter()
            call(sparse)
            best[sparse] = min(best[sparse], time.perf_counter() - start)
    return best


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_the_choice_is_within_a_twentieth_of_the_best(
    shape: tuple[int, int, int], backend: str
) -> None:
    if backend != "cpu":
        pytest.skip("the reference has one algorithm")
    if native.cpu().isa() == "portable":
        pytest.skip("the portable kernels' rate differs too much between compilers")
    torch.use_deterministic_algorithms(False)  # which fills fresh memory
    batch, columns, rows = shape
    x, weight = torch.randn(batch, columns), torch.randn(rows, columns)
    grad = torch.randn(batch, rows)
    for sparsity in SPARSITIES:
        pattern = sk.SparsityPattern(torch.rand(rows, columns) >= sparsity)
        for part, call in parts(x, weight, grad, pattern).items():
            sparse = choice.here(part, batch, rows, columns, pattern.nnz, torch.float32)
            # Other work on the machine only adds time: the least of more and more rounds, and a
            # verdict only when it lasts.
            for attempt in range(5):
                times = least_seconds(call, 5 << attempt)
                if times[sparse] <= 1.05 * min(times):
                    break
            else:
                pytest.fail(
                    f"{part} of {shape} at {sparsity}: dense {1e6 * times[0]:.0f} µs, sparse "
                    f"{1e6 * times[1]:.0f} µs, chosen: {'sparse' if sparse else 'dense'}"
                )
