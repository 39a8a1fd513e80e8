"""SparsityPattern: what it holds, how it changes, and the forms it converts to and from."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune

import sparsekern as sk

ZERO_ONE, ONE = torch.tensor([0, 1]), torch.tensor([0])
MASKS = {
    "random": lambda: torch.rand(300, 500) > 0.9,
    "sparse": lambda: torch.rand(200, 700) > 0.98,
    "wide": lambda: torch.rand(3, 9000) > 0.5,
    "tall": lambda: torch.rand(2000, 3) > 0.5,
    "odd": lambda: torch.rand(257, 67) > 0.7,
    "none": lambda: torch.zeros(40, 50, dtype=torch.bool),
    "all": lambda: torch.ones(40, 50, dtype=torch.bool),
    "single": lambda: torch.ones(1, 1, dtype=torch.bool),
    "empty rows": lambda: torch.zeros(0, 5, dtype=torch.bool),
    "empty columns": lambda: torch.zeros(5, 0, dtype=torch.bool),
    "convolution": lambda: torch.rand(30, 8, 3, 3) > 0.8,
}


def check_orders(pattern: sk.SparsityPattern, mask: Tensor) -> None:
    """The prepared orders are those of a stable sort of the kept positions."""
    flat = mask.flatten(1)
    pointer, index = pattern.to_csr()
    row, column = flat.nonzero().unbind(1)
    assert torch.equal(index.long(), column)
    assert torch.equal(pointer.diff().long(), flat.sum(1))
    if not pattern.prepared_for:
        return
    _, _, _, column_pointer, column_index, permutation, _ = pattern.tensors
    order = torch.sort(column, stable=True).indices
    assert torch.equal(permutation.long(), order)
    assert torch.equal(column_index.long(), row[order])
    assert torch.equal(column_pointer.diff().long(), flat.sum(0))


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_of_a_mask(make: object, backend: str) -> None:
    mask = make()  # type: ignore[operator]
    pattern = sk.SparsityPattern(mask)
    assert torch.equal(pattern.mask, mask)
    assert pattern.nnz == int(mask.sum())
    assert pattern.sparsity == pytest.approx(1 - mask.double().mean().nan_to_num(1.0).item())
    assert pattern.shape == mask.shape
    assert (pattern.rows, pattern.columns) == (mask.shape[0], mask.shape[1:].numel())
    check_orders(pattern, mask)


def test_update_is_a_new_pattern_in_the_same_memory() -> None:
    first, second, fuller = (torch.rand(600, 700) > level for level in (0.9, 0.95, 0.5))
    pattern = sk.SparsityPattern(first)
    before = [t.data_ptr() for t in pattern.tensors]
    assert pattern.update_(second) is pattern
    assert [t.data_ptr() for t in pattern.tensors] == before
    check_orders(pattern, second)
    check_orders(pattern.update_(fuller), fuller)  # more entries than there was memory for
    check_orders(pattern.update_(torch.zeros_like(first)), torch.zeros_like(first))
    assert pattern.nnz == 0


def test_the_mask_is_copied() -> None:
    mask = torch.rand(20, 30) > 0.5
    pattern = sk.SparsityPattern(mask)
    kept = mask.clone()
    mask.zero_()
    assert torch.equal(pattern.mask, kept)
    pattern.update_(kept.t().contiguous().t()[:, :])
    check_orders(pattern, kept)


def test_threads_make_no_difference() -> None:
    mask = torch.rand(700, 600) > 0.8
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            check_orders(sk.SparsityPattern(mask), mask)
    finally:
        torch.set_num_threads(before)


def test_masks_beyond_the_caches_and_of_many_words() -> None:
    for shape, level in (((2900, 2901), 0.995), ((70, 8200), 0.97), ((33000, 70), 0.9)):
        mask = torch.rand(shape) > level
        pattern = sk.SparsityPattern(mask)
        assert torch.equal(pattern.mask, mask)
        check_orders(pattern, mask)


def test_update_with_memory_of_its_own() -> None:
    pattern = sk.SparsityPattern(torch.rand(200, 200) > 0.7)
    pattern.mask[:100] = False
    expected = pattern.mask.clone()
    check_orders(pattern.update_(pattern.mask), expected)
    assert torch.equal(pattern.mask, expected)


def test_copies() -> None:
    pattern = sk.SparsityPattern(torch.rand(40, 50) > 0.7)
    x, weight = torch.randn(3, 50), torch.randn(40, 50)
    expected = sk.masked_linear(x, weight, pattern)
    for other in (copy.deepcopy(pattern), copy.copy(pattern), pickle.loads(pickle.dumps(pattern))):
        assert other is not pattern
        assert other.same(pattern)
        assert torch.equal(sk.masked_linear(x, weight, other), expected)
    other = copy.deepcopy(pattern)
    other.update_(~pattern.mask)
    assert not other.same(pattern)
    assert torch.equal(sk.masked_linear(x, weight, pattern), expected)


def test_devices() -> None:
    pattern = sk.SparsityPattern(torch.rand(40, 50) > 0.7)
    assert pattern.to("cpu") is pattern


def test_csr_and_back() -> None:
    pattern = sk.SparsityPattern(torch.rand(40, 50) > 0.7)
    pointer, index = pattern.to_csr()
    assert pointer.dtype == index.dtype == torch.int32
    assert sk.SparsityPattern.from_csr(pointer, index, (40, 50)).same(pattern)
    shuffled = torch.cat([part.flip(0) for part in index.split(pointer.diff().tolist())])
    assert sk.SparsityPattern.from_csr(pointer, shuffled, (40, 50)).same(pattern)
    folded = sk.SparsityPattern.from_csr(pointer, index, (40, 2, 25))
    assert folded.shape == (40, 2, 25)
    for wrong in ((pointer[1:], index), (pointer, index[1:]), (pointer, index + 11)):
        with pytest.raises(ValueError, match=r"^(pointer|index) must"):
            sk.SparsityPattern.from_csr(*wrong, (40, 50))


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo, torch.sparse_bsr], ids=str)
def test_torch_sparse_and_back(layout: torch.layout) -> None:
    mask, weight = torch.rand(40, 50) > 0.7, torch.randn(40, 50)
    pattern = sk.SparsityPattern(mask)
    options = {"blocksize": (4, 5)} if layout is torch.sparse_bsr else {}
    matrix = pattern.to_sparse(pattern.gather(weight), layout, **options)
    assert matrix.layout is layout
    assert torch.equal(matrix.to_dense(), weight * mask)
    if layout is torch.sparse_csr:
        assert matrix.crow_indices().dtype == torch.int32
    found = sk.SparsityPattern.from_sparse(matrix)
    if layout is torch.sparse_bsr:  # whole blocks
        blocks = mask.view(10, 4, 10, 5).any(3, keepdim=True).any(1, keepdim=True)
        mask = blocks.expand(10, 4, 10, 5).reshape(40, 50)
    assert torch.equal(found.mask, mask)


def test_stored_zeros_are_kept() -> None:
    matrix = torch.sparse_coo_tensor(torch.tensor([[0, 2], [1, 1]]), torch.zeros(2), (3, 4))
    for stored in (matrix, matrix.to_sparse_csr(), matrix.to_sparse_csc()):
        assert sk.SparsityPattern.from_sparse(stored).nnz == 2


def test_pruned_modules_and_back() -> None:
    module = torch.nn.Linear(50, 40)
    with pytest.raises(ValueError, match="has not pruned its weight"):
        sk.SparsityPattern.from_pruned(module)
    prune.l1_unstructured(module, "weight", 0.9)
    pattern = sk.SparsityPattern.from_pruned(module)
    assert pattern.nnz == 200
    other = pattern.prune(torch.nn.Linear(50, 40))
    assert torch.equal(other.weight_mask, module.weight_mask)
    assert torch.equal(other.weight == 0, ~pattern.mask)


def test_gather_and_scatter() -> None:
    weight, pattern = torch.randn(40, 50), sk.SparsityPattern(torch.rand(40, 50) > 0.7)
    values = pattern.gather(weight)
    assert torch.equal(values, weight[pattern.mask])
    assert torch.equal(pattern.scatter(values), weight * pattern.mask)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda p: p.gather([[1.0]]), TypeError, "weight must be a tensor, got list"),
        (lambda p: p.gather(torch.ones(5, 4)), ValueError, r"weight has shape \(5, 4\)"),
        (lambda p: p.gather(p.mask.to("meta")), ValueError, "weight is on meta"),
        (lambda p: p.scatter(3.0), TypeError, "values must be a tensor, got float"),
        (lambda p: p.scatter(torch.ones(3)), ValueError, r"values must have shape \(20,\)"),
        (lambda p: p.to_sparse(torch.ones(20), "csr"), ValueError, "layout must be .* 'csr'"),
        (
            lambda p: p.to_sparse(torch.ones(20), torch.sparse_bsr),
            ValueError,
            "blocksize must be .* None",
        ),
        (
            lambda p: p.to_sparse(torch.ones(20), torch.sparse_bsr, blocksize=(3, 5)),
            ValueError,
            r"blocksize must be two whole numbers that divide .*\(4, 5\).* got \(3, 5\)",
        ),
        (lambda p: p.prune(torch.nn.Linear(4, 5)), ValueError, r"module must .*\(4, 5\).*\(5, 4\)"),
        (lambda p: p.prune(torch.nn.ReLU()), ValueError, "a parameter weight .* got none"),
        (lambda p: p.from_pruned(3), ValueError, "module of type int has no weight_mask"),
        (lambda p: p.from_sparse([1]), TypeError, "matrix must be a torch sparse tensor, got list"),
        (lambda p: p.from_csr([0, 1], ONE, (1, 1)), TypeError, "pointer must be .* got list"),
        (lambda p: p.from_csr(ZERO_ONE.float(), ONE, (1, 1)), TypeError, r"pointer .*float32"),
        (lambda p: p.from_csr(ZERO_ONE, ONE[None], (1, 1)), ValueError, r"index .*\(1, 1\)"),
        (lambda p: p.from_csr(ZERO_ONE, ONE, 1), ValueError, "shape must be .* got 1"),
        (lambda p: p.from_csr(ZERO_ONE, ONE, ()), ValueError, r"shape must be .* got \(\)"),
    ],
)
def test_wrong_arguments_are_named(
    call: Callable[[sk.SparsityPattern], object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        call(sk.SparsityPattern(torch.ones(4, 5, dtype=torch.bool)))


def test_representation() -> None:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, 0] = True
    assert repr(sk.SparsityPattern(mask)) == (
        "SparsityPattern(shape=(4, 5), nnz=1, sparsity=0.9500, device='cpu')"
    )


def test_bytes_that_are_neither_0_nor_1_are_true() -> None:
    """As memory that nobody has written has them, such as a layer's mask after ``to_empty``."""
    bytes_ = torch.randint(0, 256, (70, 130), dtype=torch.uint8)
    bytes_[torch.rand(70, 130) > 0.5] = 0
    pattern = sk.SparsityPattern(bytes_.view(torch.bool))
    pointer, index = pattern.to_csr()
    kept = bytes_ != 0
    assert pattern.nnz == int(kept.sum())
    assert torch.equal(pointer.diff(), kept.sum(dim=1).int())
    assert torch.equal(index, kept.nonzero()[:, 1].int())
