"""What fused products launch, and when they are taken: sizes and rates alone, without Triton."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparsekern import dispatch
from sparsekern.ops.masked import cuda_rates
from sparsekern.ops.masked.triton import choice, plan
from sparsekern.ops.masked.triton.plan import Product
from sparsekern.ops.tiled.configurations import configuration

H200 = cuda_rates.shipped((9, 0))
DEVICES = ("cuda:8.0", "cuda:9.0", "cuda:10.0", "cuda:12.0", "hip", "xpu")
PARTS = ("forward", "input", "weight")
SM = 132


@pytest.fixture(autouse=True)
def backend() -> None:
    """Once: nothing here depends on the back end in use."""


def of(part: str, batch: int, side: int = 4096, operands: str = "bf16", **rest: object) -> Product:
    element = 2 if operands in ("bf16", "fp16") else 4
    product = Product(part, batch, side, side, element, element, operands)
    return dataclasses.replace(product, **rest)  # type: ignore[arg-type]


def launched(product: Product) -> tuple[plan.Plan, list[plan.Launch]]:
    how = plan.plan(product, "cuda:9.0", SM)
    add = configuration("cuda:9.0", plan.ADD, "any", 0)
    return how, plan.launches(product, how, add)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operands", ["ieee", "tf32x3", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("part", PARTS)
def test_every_size_has_a_plan_that_covers_it(part: str, operands: str, device: str) -> None:
    for batch in (1, 16, 17, 64, 200, 5000):
        for side in (1, 100, 128, 4096):
            product = of(part, batch, side, operands)
            how = plan.plan(product, device, SM)
            assert how.chunk % how.step == 0
            assert (how.splits - 1) * how.chunk < product.depth <= how.splits * how.chunk
            tiles = -(-product.lanes // how.lanes) * -(-product.features // plan.FEATURES)
            assert how.tiles == tiles


@pytest.mark.parametrize("part", ["forward", "input"])
def test_a_small_batch_reads_weight_and_mask_once_and_fills_the_device(part: str) -> None:
    product = of(part, 16)
    how, (multiply, add) = launched(product)
    weights = 4096 * 4096
    assert multiply.read == 3 * weights + 2 * 16 * 4096
    assert how.tiles * how.splits >= 2 * SM
    # Parts of the result are small beside the weight, and added up in a second launch.
    assert add.read == multiply.written == 4 * 16 * 4096 * how.splits
    assert multiply.written + add.read <= multiply.read / 4
    assert add.written == 2 * 16 * 4096


def test_a_larger_batch_finds_the_weight_in_the_cache() -> None:
    _, (multiply,) = launched(of("forward", 512))
    assert multiply.grid == (4 * 32, 1)
    assert multiply.read == 3 * 4096**2 + 2 * 512 * 4096
    assert multiply.again == 3 * 3 * 4096**2 + 31 * 2 * 512 * 4096


def test_a_gradient_is_written_once_masked_or_not() -> None:
    for product in (of("weight", 256), of("weight", 256, masked=False)):
        _, (multiply,) = launched(product)
        assert multiply.written == 2 * 4096**2
        assert multiply.read == 2 * 256 * 8192 + (4096**2 if product.masked else 0)
    _, (mixed,) = launched(of("weight", 256, weight=4))  # autocast: float32 sums stay
    assert mixed.written == 4 * 4096**2


def test_a_long_batch_is_shared_and_masked_at_the_end() -> None:
    how, (multiply, add) = launched(of("weight", 100_000, 128))
    assert how.splits > 32
    assert multiply.read == 2 * 100_000 * 256
    assert add.read == multiply.written + 128**2
    assert add.written == 2 * 128**2


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("operands", ["ieee", "tf32x3", "tf32", "bf16", "fp16"])
def test_small_batches_are_fused_and_large_ones_torchs(part: str, operands: str) -> None:
    taken = [choice.is_fused(of(part, 2**i, operands=operands), H200) for i in range(4, 15)]
    assert taken[0]
    assert not taken[-1]
    assert taken == sorted(taken, reverse=True)  # once torch's, torch's beyond


def test_what_is_saved_moves_the_edge() -> None:
    def edge(part: str, **rest: object) -> int:
        return next(
            batch
            for batch in range(16, 100_000, 16)
            if not choice.is_fused(of(part, batch, **rest), H200)  # type: ignore[arg-type]
        )

    assert edge("forward", operands="ieee") < edge("forward", operands="bf16")
    # torch casts a float32 weight, and a gradient, in a pass of its own.
    assert edge("forward") < edge("forward", weight=4)
    assert edge("weight") < edge("weight", weight=4)


def test_a_straight_through_gradient_of_one_type_is_torchs() -> None:
    for batch in (64, 256, 2048):
        assert not choice.is_fused(of("weight", batch, masked=False), H200)
    assert choice.is_fused(of("weight", 64, masked=False, weight=4), H200)


def test_what_never_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(3, 4), torch.ones(5, 4)
    assert not dispatch.runs_triton_kernels(x.device)  # not asked for by name
    assert not choice.here("forward", x, weight)
    monkeypatch.setattr(dispatch, "runs_triton_kernels", lambda _: True)
    assert not choice.here("forward", x, weight)  # no rates are known of this device
    monkeypatch.setattr(dispatch, "requested", lambda: "triton")
    assert choice.here("forward", x, weight)
    assert not choice.here("forward", x.double(), weight.double())
    assert not choice.here("forward", x[:0], weight)
    assert not choice.here("forward", torch.empty(3, 1).expand(3, 1 << 24), weight)
