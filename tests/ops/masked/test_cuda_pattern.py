"""Patterns built by the CUDA kernels, and how launches over them are laid out."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern import native


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


@pytest.fixture
def kernels() -> ModuleType:
    return native.cuda()


def bucket(length: int) -> int:
    """Lengths that count as one: eight for each doubling from 16 on."""
    if length < 16:
        return length
    exponent = length.bit_length() - 1
    return 16 + (exponent - 4) * 8 + (length >> (exponent - 3) & 7)


def check(pattern: sk.SparsityPattern, mask: Tensor) -> None:
    """All orders and schedules against numpy's."""
    flat = mask.flatten(1).numpy()
    nnz = int(flat.sum())
    assert pattern.nnz == nnz
    assert torch.equal(pattern.mask.cpu(), mask)
    found = [t.cpu().numpy() for t in pattern.trimmed_tensors]
    row, column = np.nonzero(flat)
    by_column = np.lexsort((row, column))
    for pointer, index, lengths, wanted in (
        (found[1], found[2], flat.sum(1), column),
        (found[3], found[4], flat.sum(0), row[by_column]),
    ):
        assert np.array_equal(pointer, np.concatenate([[0], np.cumsum(lengths)]))
        assert np.array_equal(index, wanted)
    assert np.array_equal(found[5], by_column)
    for schedule, lengths in ((found[6], flat.sum(1)), (found[7], flat.sum(0))):
        assert schedule[0] == (lengths >= 512).sum()
        assert np.array_equal(np.sort(schedule[1:]), np.arange(len(lengths)))
        buckets = [bucket(int(lengths[i])) for i in schedule[1:]]
        assert buckets == sorted(buckets, reverse=True)


# Columns on and off the kernel's 16 bytes and 512 columns; rows on and off its 32; more rows than
# one pass over the counts takes (2048); long rows and long columns.
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (33, 16), (40, 513), (3, 1100), (64, 512), (2100, 20), (5, 3, 2, 2), (0, 5), (5, 0)],
    ids=str,
)
def test_orders(shape: tuple[int, ...], backend: str) -> None:
    for sparsity in (0.0, 0.4, 0.97, 1.0):
        mask = torch.rand(shape) >= sparsity
        check(sk.SparsityPattern(mask.to(backend)), mask)


def test_a_mask_that_does_not_begin_at_sixteen_bytes(backend: str) -> None:
    # The pattern's own copy does: what the kernel is given is told by its address.
    mask = torch.rand(20, 33) >= 0.5
    check(sk.SparsityPattern(mask.to(backend)[:, 1:]), mask[:, 1:])
    check(sk.SparsityPattern(mask.to(backend).t()), mask.t())


def test_updates_stay_in_their_memory(backend: str) -> None:
    masks = [torch.rand(50, 70) >= 0.9 for _ in range(4)]
    pattern = sk.SparsityPattern(masks[0].to(backend))
    places = [t.data_ptr() for t in pattern.tensors]
    for mask in masks[1:]:
        assert pattern.update_(mask.to(backend)) is pattern
        assert [t.data_ptr() for t in pattern.tensors] == places
        check(pattern, mask)


def test_an_update_counts_when_it_is_asked(backend: str) -> None:
    pattern = sk.SparsityPattern(torch.zeros(64, 100, dtype=torch.bool, device=backend))
    assert pattern.expected_nnz == pattern.nnz == 0
    mask = torch.rand(64, 100) >= 0.3
    pattern.update_(mask.to(backend))
    room = pattern.tensors[2].shape[0]
    assert pattern.sparsity == pytest.approx(1 - mask.float().mean().item())
    assert pattern.nnz <= pattern.expected_nnz <= pattern.nnz * 9 / 8
    assert pattern.tensors[2].shape[0] > room
    check(pattern, mask)
    values = pattern.gather(torch.arange(6400.0, device=backend).view(64, 100))
    assert values.shape == (pattern.nnz,)
    pointer, index = pattern.to_csr()
    assert index.shape == (pattern.nnz,)
    assert sk.SparsityPattern.from_csr(pointer, index, (64, 100)).same(pattern)


def test_buckets_of_lengths(kernels: ModuleType) -> None:
    lengths = [*range(3000), *(2**e + d for e in range(12, 31) for d in (-1, 0, 2 ** (e - 3)))]
    buckets = [kernels.length_bucket(length) for length in lengths]
    assert buckets == [bucket(length) for length in lengths]
    assert max(buckets) < 256
    assert kernels.length_bucket(511) < kernels.length_bucket(512)


def test_items_cover_all_rows(kernels: ModuleType) -> None:
    for rows in (0, 1, 7, 8, 9, 1000):
        for long in {0, min(1, rows), rows // 2, rows}:
            others = rows - long
            assert kernels.count_items(rows, long) == long + -(-others // 8)


def test_launches_fill_the_device_and_stay_within_its_limits(kernels: ModuleType) -> None:
    for rows in (1, 64, 4096, 10**6, 2**31 - 1):
        for vectors in (1, 2, 3, 64, 10**5, 2**28):
            lanes, blocks, tiles = kernels.plan_product(rows, vectors, 132)
            assert lanes in (1, 8)
            assert 1 <= blocks <= max(rows, 1)
            assert blocks < 2**31
            assert 1 <= tiles <= 65535
            assert tiles == min(-(-vectors // lanes), 65535)
            # A block for each eight rows, or enough for the device, or one for each row.
            assert blocks >= min(-(-rows // 8), 2**31 - 1)
            assert blocks * tiles >= min(4 * 132, rows * tiles) or tiles == 65535
    for capacity in (0, 1, 10**4, 2**31 - 1):
        blocks = kernels.sample_blocks(capacity, 132)
        assert 1 <= blocks <= 32 * 132
        assert blocks >= min(-(-capacity // 256), 32 * 132)
