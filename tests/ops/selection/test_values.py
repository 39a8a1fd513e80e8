"""Thresholds and masks against numpy, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern import native

from ..conftest import compiled_only
from . import oracle

# Few elements; some; and so many that the compiled core looks at a sample first.
SIZES = [1, 7, 5000, 60_000]


def check(tensors: list[Tensor], sparsity: float) -> None:
    threshold = sk.magnitude_threshold(tensors, sparsity)
    assert threshold.shape == ()
    assert threshold.dtype == tensors[0].dtype
    assert threshold.double().item() == oracle.threshold(tensors, sparsity)
    for magnitude in (False, True):
        found = sk.global_masks(tensors, sparsity, magnitude=magnitude)
        expected = oracle.masks(tensors, sparsity, magnitude)
        for mask, wanted in zip(found, expected, strict=True):
            assert mask.dtype == torch.bool
            assert torch.equal(mask, wanted)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_layers_of_different_scales(dtype: torch.dtype, size: int) -> None:
    tensors = oracle.network(size, dtype)
    for sparsity in oracle.SPARSITIES:
        check(tensors, sparsity)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("size", [300, 40_000])
def test_hard_cases(dtype: torch.dtype, size: int) -> None:
    for name, tensors in oracle.hard_cases(dtype, size).items():
        for sparsity in (0.0, 0.05, 0.5, 0.93, 1.0):
            try:
                check(tensors, sparsity)
            except AssertionError as error:
                raise AssertionError(f"{name} at sparsity {sparsity}") from error


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_every_rank(dtype: torch.dtype) -> None:
    tensors = [torch.randint(-4, 5, (5, 3)).to(dtype), torch.randn(4).to(dtype)]
    for rank in range(20):
        check(tensors, rank / 19)


def test_one_tensor_is_a_list_of_one() -> None:
    x = torch.randn(30, 5)
    assert torch.equal(sk.magnitude_threshold(x, 0.5), sk.magnitude_threshold([x], 0.5))
    (mask,) = sk.global_masks(x, 0.5)
    assert torch.equal(mask, sk.global_masks([x], 0.5)[0])
    assert sk.magnitude_threshold(torch.tensor(-3.0), 0.3).item() == 3


@pytest.mark.parametrize("size", [1000, 50_000])
def test_ties_keep_what_comes_first(size: int) -> None:
    first, second = sk.global_masks([torch.zeros(size), torch.zeros(size)], 0.75)
    assert first[: size // 2].all()
    assert not first[size // 2 :].any()
    assert not second.any()


@compiled_only
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_a_misleading_sample(dtype: torch.dtype) -> None:
    total = 150_000
    looked_at = torch.tensor(native.cpu().sample_positions(total))
    assert len(looked_at) == len(looked_at.unique()) > 1000
    # Nothing seen lies where the wanted element does.
    x = torch.rand(total).to(dtype)
    x[looked_at] = 5
    # The sample says nothing between 0 and 10, where everything else is.
    y = torch.rand(total).to(dtype) * 8 + 1
    y[looked_at] = (torch.arange(len(looked_at)) % 2 * 10).to(dtype)
    for tensors in ([x], [x[:70_000], x[70_000:]], [y]):
        for sparsity in (0.02, 0.5, 0.9):
            check(tensors, sparsity)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_layouts(dtype: torch.dtype) -> None:
    image = torch.randn(8, 6, 5, 4).to(dtype)
    tensors = [
        image.contiguous(memory_format=torch.channels_last),
        image.permute(2, 0, 3, 1),
        image[:, 1:, ::2],
        image[0, 0].t(),
        image[:1].expand(3, 6, 5, 4),
        torch.randn(2, 3, 4, 5, 2).to(dtype).contiguous(memory_format=torch.channels_last_3d),
        torch.complex(torch.randn(9), torch.randn(9)).conj().imag.to(dtype),
    ]
    for sparsity in (0.0, 0.3, 0.9):
        check(tensors, sparsity)


def test_negative_views() -> None:
    view = torch.complex(torch.randn(900), torch.randn(900)).conj().imag
    assert view.is_neg()
    check([view, torch.randn(5)], 0.4)


def test_inputs_stay_as_they_are_and_results_carry_no_gradient() -> None:
    weights = [torch.nn.Parameter(torch.randn(50, 4)), torch.nn.Parameter(torch.randn(7))]
    copies = [w.detach().clone() for w in weights]
    threshold = sk.magnitude_threshold(weights, 0.5)
    masks = sk.global_masks(weights, 0.5)
    assert not threshold.requires_grad
    assert not any(mask.requires_grad for mask in masks)
    assert all(torch.equal(w, c) for w, c in zip(weights, copies, strict=True))


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_thread_counts_change_nothing(dtype: torch.dtype) -> None:
    tensors = oracle.network(90_000, dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            masks = sk.global_masks(tensors, 0.77)
            results.append((sk.magnitude_threshold(tensors, 0.77), *masks))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_autocast_changes_nothing() -> None:
    tensors = oracle.network(500, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        check(tensors, 0.6)


def test_results_are_on_the_cpu_whatever_the_default_device() -> None:
    tensors = oracle.network(500, torch.float32)
    with torch.device("meta"):
        assert sk.magnitude_threshold(tensors, 0.5).device.type == "cpu"
        assert {mask.device.type for mask in sk.global_masks(tensors, 0.5)} == {"cpu"}
