"""Selection on the CUDA kernels against numpy, bit for bit: on a GPU, and emulated everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from ..conftest import gpu_only
from . import oracle

# One chunk of a block is 4096 float32 values; up to 8192 elements no sample is taken.
SIZES = [1, 7, 5000, 30_000]


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


def check(tensors: list[Tensor], sparsity: float, device: str) -> None:
    there = [x.to(device) for x in tensors]
    threshold = sk.magnitude_threshold(there, sparsity)
    assert threshold.device.type == device
    assert threshold.shape == ()
    assert threshold.dtype == tensors[0].dtype
    assert threshold.double().item() == oracle.threshold(tensors, sparsity)
    for magnitude in (False, True):
        found = sk.global_masks(there, sparsity, magnitude=magnitude)
        expected = oracle.masks(tensors, sparsity, magnitude)
        for mask, wanted in zip(found, expected, strict=True):
            assert mask.dtype == torch.bool
            assert torch.equal(mask.cpu(), wanted)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_layers_of_different_scales(dtype: torch.dtype, size: int, backend: str) -> None:
    tensors = oracle.network(size, dtype)
    for sparsity in oracle.SPARSITIES:
        check(tensors, sparsity, backend)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("size", [300, 20_000])
def test_hard_cases(dtype: torch.dtype, size: int, backend: str) -> None:
    for name, tensors in oracle.hard_cases(dtype, size).items():
        for sparsity in (0.05, 0.5, 0.93):
            try:
                check(tensors, sparsity, backend)
            except AssertionError as error:
                raise AssertionError(f"{name} at sparsity {sparsity}") from error


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_every_rank(dtype: torch.dtype, backend: str) -> None:
    tensors = [torch.randint(-4, 5, (5, 3)).to(dtype), torch.randn(4).to(dtype)]
    for rank in range(20):
        check(tensors, rank / 19, backend)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_a_misleading_sample(dtype: torch.dtype, backend: str) -> None:
    total = 40_000
    looked_at = _sampled(total)
    assert len(looked_at.unique()) == 2048
    # Nothing seen lies where the wanted element does: all digits are looked for among everything.
    x = torch.rand(total).to(dtype)
    x[looked_at] = 5
    # The sample says nothing between 0 and 10, where more lies than is collected.
    y = torch.rand(total).to(dtype) * 8 + 1
    y[looked_at] = (torch.arange(len(looked_at)) % 2 * 10).to(dtype)
    for tensors in ([x], [x[:17_000], x[17_000:]], [y]):
        for sparsity in (0.02, 0.5, 0.9):
            check(tensors, sparsity, backend)


def _sampled(total: int) -> Tensor:
    """The positions that the kernel looks at first: sample_position() of selection.cu."""
    samples = torch.arange(2048)
    begin, end = samples * total // 2048, (samples + 1) * total // 2048
    hashed = (samples + 1) * 2654435761 % 2**32
    return begin + ((end - begin) * (hashed >> 8) >> 24)


def test_layouts(backend: str) -> None:
    image = torch.randn(8, 6, 5, 4)
    flat = torch.randn(10_001)
    tensors = [
        image.contiguous(memory_format=torch.channels_last),
        image.permute(2, 0, 3, 1),
        image[:, 1:, ::2],
        image[0, 0].t(),
        flat[1:],  # not aligned to 16 bytes
        torch.complex(torch.randn(9), torch.randn(9)).conj().imag,
    ]
    for sparsity in (0.0, 0.3, 0.9):
        check(tensors, sparsity, backend)


def test_more_tensors_than_one_launch_tells_of(backend: str) -> None:
    tensors = [torch.randn(1 + i % 7) for i in range(150)]
    for sparsity in (0.2, 0.8):
        check(tensors, sparsity, backend)


def test_ties_over_many_chunks_keep_what_comes_first(backend: str) -> None:
    tensors = [torch.zeros(70_000), torch.zeros(9, 1000)]
    for kept in (1, 4095, 4096, 33_000, 70_001, 78_999):
        check(tensors, 1 - kept / 79_000, backend)


@gpu_only
def test_many_weights_without_waiting_for_the_device() -> None:
    tensors = [torch.randn(1 << 20, device="cuda") * 10.0**-i for i in range(20)]
    flat = torch.cat(tensors).abs()
    wanted = flat.sort().values
    torch.cuda.set_sync_debug_mode("error")
    try:
        thresholds = [sk.magnitude_threshold(tensors, sparsity) for sparsity in (0.5, 0.9, 0.99)]
        masks = sk.global_masks(tensors, 0.9, magnitude=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for sparsity, threshold in zip((0.5, 0.9, 0.99), thresholds, strict=True):
        assert threshold == wanted[int(sparsity * len(flat))]
    assert sum(int(mask.sum()) for mask in masks) == len(flat) - int(0.9 * len(flat))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sk.magnitude_threshold(tensors, 0.75)
    tensors[0].mul_(3)
    graph.replay()
    changed = torch.cat(tensors).abs().sort().values
    assert captured == changed[int(0.75 * len(changed))]
