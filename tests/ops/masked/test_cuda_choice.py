"""The choice of algorithm on a GPU, a pure function of sizes and rates."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsekern import native
from sparsekern.ops.masked import compressed as compressed_weights
from sparsekern.ops.masked import cuda_choice, cuda_rates, rates
from sparsekern.ops.masked.cuda_choice import Sizes
from sparsekern.tuning import command, measure_cuda

H200 = cuda_rates.shipped((9, 0))


def sizes(batch: int, sparsity: float, dtype: torch.dtype, side: int = 4096, **rest: Any) -> Sizes:
    return Sizes(batch, side, side, round(side * side * (1 - sparsity)), dtype, **rest)


def chosen(part: str, batch: int, side: int, sparsity: float, **rest: Any) -> str:
    dtype = rest.pop("dtype", torch.float32)
    return cuda_choice.algorithm(part, sizes(batch, sparsity, dtype, side, **rest), H200)


def compressed(batch: int, sparsity: float, dtype: torch.dtype, *forms: str, **rest: Any) -> str:
    """What multiplies a batch with a weight that is there in these forms and as a dense one."""
    rest.setdefault("masked", True)
    return cuda_choice.algorithm(
        "forward", sizes(batch, sparsity, dtype, **rest), H200, (*forms, "dense")
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


@pytest.mark.parametrize(
    ("batch", "sparsity", "expected"),
    [
        (1, 0.95, "few"),
        (4, 0.95, "few"),
        (8, 0.95, "panels"),
        (1, 0.5, "panels"),
        (16, 0.9, "panels"),
        (17, 0.9, "dense"),
        (1, 0.1, "dense"),
        (0, 0.9, "dense"),
    ],
)
def test_bitmasks_in_bfloat16(batch: int, sparsity: float, expected: str) -> None:
    assert compressed(batch, sparsity, torch.bfloat16, "bitmask") == expected


@pytest.mark.parametrize(
    ("batch", "sparsity", "expected"),
    [(1, 0.9, "few"), (16, 0.98, "few"), (16, 0.5, "dense"), (1, 0.0, "dense")],
)
def test_bitmasks_in_float32(batch: int, sparsity: float, expected: str) -> None:
    assert compressed(batch, sparsity, torch.float32, "bitmask") == expected


def test_small_layers_are_left_compressed() -> None:
    """Their launches take longer than their bytes, dense or not."""
    assert compressed(1, 0.9, torch.bfloat16, "bitmask", side=256) == "few"


@pytest.mark.parametrize("batch", [1, 16, 256, 4096])
def test_two_of_four_goes_to_torch(batch: int) -> None:
    assert compressed(batch, 0.5, torch.float16, "semi_structured") == "semi_structured"


def test_blocks_are_taken_for_batches_that_are_large() -> None:
    half = {"block_side": 64, "in_blocks": 4096 * 4096 // 4}
    for batch, expected in ((1, "few"), (17, "blocks"), (1000, "blocks")):
        assert compressed(batch, 0.95, torch.float16, "bitmask", "blocks", **half) == expected
    # Of the same weights in smaller blocks, which cost more, nothing is gained.
    smaller = {"block_side": 16, "in_blocks": 4096 * 4096 // 4}
    assert compressed(1000, 0.8, torch.float16, "blocks", **smaller) == "dense"


def test_a_weight_that_is_masked_already_saves_the_masking() -> None:
    slower = H200._replace(unpacked=2000)
    of = sizes(16, 0.5, torch.bfloat16)
    for masked, expected in ((False, "panels"), (True, "dense")):
        found = cuda_choice.algorithm(
            "forward", of._replace(masked=masked), slower, ("bitmask", "dense")
        )
        assert found == expected


def test_every_form_is_weighed_against_every_other() -> None:
    """With all forms there, each is chosen where its rate is raised and no other's."""
    forms = ("unstructured", "dense", "bitmask", "semi_structured", "blocks")
    in_blocks = 4096 * 4096 * 3 // 4
    of = sizes(8, 0.5, torch.bfloat16, masked=True, block_side=64, in_blocks=in_blocks)
    slow = H200._replace(
        cache=1.0, instructions=1.0, unpacked=1.0, half=10.0, semi_structured=1.0, blocks64=1e-3
    )
    for raised, expected in (
        ({"cache": 1e9}, "unstructured"),
        ({"instructions": 1e9}, "few"),
        ({"unpacked": 1e9}, "panels"),
        ({"half": 1e9}, "dense"),
        ({"semi_structured": 1e9}, "semi_structured"),
        ({"blocks64": 1e9}, "blocks"),
    ):
        assert cuda_choice.algorithm("forward", of, slow._replace(**raised), forms) == expected


def test_forms_that_are_none_are_named() -> None:
    message = (
        r"forms must hold some of bitmask, blocks, dense, semi_structured, unstructured, "
        r"got \['csr'\]"
    )
    with pytest.raises(ValueError, match=message):
        cuda_choice.algorithm("forward", sizes(1, 0.5, torch.float32), H200, ("csr",))


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
    found = cuda_rates.DeviceRates(*range(1, 15))
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


def seconds_of(call: Any, repeats: int) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_rates_are_measured_by_calls(cuda_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A dense weight stands in for torch's 2:4 form, which only a GPU makes.
    multiplied: list[tuple[int, ...]] = []

    def stand_in(weight: torch.Tensor) -> torch.Tensor:
        assert compressed_weights.is_semi_structured(weight != 0)
        multiplied.append(tuple(weight.shape))
        return weight

    monkeypatch.setattr(compressed_weights, "semi_structured", stand_in)
    said: list[str] = []
    before = torch.get_float32_matmul_precision()
    found = measure_cuda.measure(torch.device(cuda_device), said.append, seconds_of, size=64)
    assert all(number > 0 for number in found)
    assert len(said) == 1
    assert all(name in said[0] for name in found._fields)
    assert torch.get_float32_matmul_precision() == before
    assert multiplied == [(64, 64)]


def test_forms_that_torch_does_not_multiply_keep_their_rates(
    cuda_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_weights, "semi_structured", lambda weight: None)
    monkeypatch.setattr(compressed_weights, "blocks", lambda weight, side: None)
    device = torch.device(cuda_device)
    found = measure_cuda.measure(device, lambda text: None, seconds_of, size=64)
    known = cuda_choice.machine(device)[0]
    for name in ("semi_structured", "blocks64", "blocks32", "blocks16"):
        assert getattr(found, name) == getattr(known, name)


def test_rates_are_those_of_what_was_called(
    cuda_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which every call takes one nanosecond: rates are then counts."""
    monkeypatch.setattr(compressed_weights, "semi_structured", lambda weight: weight)
    monkeypatch.setattr(compressed_weights, "blocks", lambda weight, side: weight)
    device = torch.device(cuda_device)
    found = measure_cuda.measure(device, lambda text: None, lambda call, repeats: 1e-9, size=64)
    assert found.memory == 2 * 8 * 64 * 64 * 4
    assert found.float32 == found.half == found.semi_structured == 2 * 64**3
    assert found.unpacked == 4 * 64 * 64
    assert (found.blocks64, found.blocks32, found.blocks16) == (1, 0.25, 0.25)
    assert found.launch == 1


def test_tuning_without_the_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load_cuda", lambda: (None, "it was not built"))
    parser = argparse.ArgumentParser()
    command.configure(parser)
    arguments = parser.parse_args(["--device", "cuda", "--masked", "--dry-run"])
    with pytest.raises(ValueError, match="tune on a GPU: it was not built"):
        command.run(arguments)


def test_a_fused_dense_product_moves_the_edge() -> None:
    side, batch = 4096, 64
    for nnz in (side * side // 50, side * side // 4):
        sizes = cuda_choice.Sizes(batch, side, side, nnz, torch.bfloat16)
        fused = sizes._replace(fused=True)
        for part in ("forward", "input", "weight"):
            plain = cuda_choice.dense_nanoseconds(part, sizes, H200)
            assert cuda_choice.dense_nanoseconds(part, fused, H200) < plain
            large = fused._replace(batch=8192)
            assert cuda_choice.dense_nanoseconds(
                part, large, H200
            ) == cuda_choice.dense_nanoseconds(part, large._replace(fused=False), H200)
