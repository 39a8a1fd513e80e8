"""The choice of algorithm on a GPU, a pure function of sizes and rates."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsekern import native
from sparsekern.ops.masked import cuda_choice, cuda_rates, rates
from sparsekern.tuning import command, measure_cuda

H200 = cuda_rates.shipped((9, 0))


def chosen(part: str, batch: int, side: int, sparsity: float, **rest: Any) -> str:
    nnz = round(side * side * (1 - sparsity))
    dtype = rest.pop("dtype", torch.float32)
    return cuda_choice.algorithm(
        part, cuda_choice.Sizes(batch, side, side, nnz, dtype, **rest), H200
    )


@pytest.mark.parametrize("part", ["forward", "input", "weight"])
def test_few_kept_weights_go_by_entries_and_many_by_torch(part: str) -> None:
    assert chosen(part, 256, 4096, 0.998) == "unstructured"
    assert chosen(part, 256, 4096, 0.0) == "dense"
    order = [chosen(part, 256, 4096, s / 100) for s in range(0, 101, 2)]
    assert order == sorted(order)  # once sparse, sparse beyond


def test_tensor_cores_move_the_edge() -> None:
    def edge(**rest: Any) -> float:
        return next(
            s / 1000
            for s in range(1001)
            if chosen("forward", 2048, 4096, s / 1000, **rest) == "unstructured"
        )

    assert edge() < edge(tf32=True) < 1
    assert edge() < edge(dtype=torch.bfloat16) < 1


def test_a_class_stands_for_those_above_it() -> None:
    defaults = cuda_rates.DEFAULTS
    assert cuda_rates.shipped((7, 5)) is defaults[8, 0]
    assert cuda_rates.shipped((8, 7)) is defaults[8, 6]
    assert cuda_rates.shipped((10, 3)) is defaults[10, 0]
    assert cuda_rates.shipped((13, 0)) is defaults[12, 0]


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"part must be one of forward, input, weight, got 'x'"):
        chosen("x", 1, 64, 0.5)


def test_tuned_rates_are_kept_beside_a_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rates.VARIABLE, str(tmp_path / "rates.json"))
    cuda_rates.rates.cache_clear()
    rates.save(rates.DEFAULTS["avx2"], "avx2", 2)
    assert cuda_rates.rates("GPU", (9, 0)) == H200
    found = cuda_rates.DeviceRates(*range(1, 9))
    assert cuda_rates.save(found, "GPU") == tmp_path / "rates.json"
    assert cuda_rates.rates("GPU", (9, 0)) == found
    assert cuda_rates.rates("another", (9, 0)) == H200
    assert rates.tuned("avx2", 2) == rates.DEFAULTS["avx2"]
    rates.write_entry("GPU, cuda", {"memory": -1})
    cuda_rates.rates.cache_clear()
    with pytest.warns(RuntimeWarning, match="is passed over"):
        assert cuda_rates.rates("GPU", (9, 0)) == H200
    cuda_rates.rates.cache_clear()
    rates.rates.cache_clear()


def test_rates_are_measured_by_calls(cuda_device: str) -> None:
    def seconds_of(call: Any, repeats: int) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    said: list[str] = []
    before = torch.get_float32_matmul_precision()
    found = measure_cuda.measure(torch.device(cuda_device), said.append, seconds_of, size=64)
    assert all(number > 0 for number in vars(found).values())
    assert len(said) == 1
    assert torch.get_float32_matmul_precision() == before


def test_tuning_without_the_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load_cuda", lambda: (None, "it was not built"))
    parser = argparse.ArgumentParser()
    command.configure(parser)
    arguments = parser.parse_args(["--device", "cuda", "--masked", "--dry-run"])
    with pytest.raises(ValueError, match="tune on a GPU: it was not built"):
        command.run(arguments)
