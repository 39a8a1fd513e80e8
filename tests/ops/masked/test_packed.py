"""Kept values stored row by row: products by the compiled core, and the choice between them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import choice, packed, rates
from sparsekern.ops.masked.compressed import CompressedWeight

from ..conftest import compiled_only
from . import oracle

pytestmark = compiled_only


@pytest.fixture(autouse=True)
def by_kept_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "packed_here", lambda *_: "unstructured")


def check(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> CompressedWeight:
    form = CompressedWeight(oracle.poison(weight, mask), mask)
    assert form.forms == {"unstructured"}
    grad = torch.zeros(x.shape[0], weight.shape[0])
    wanted = oracle.linear(x, weight, mask, bias, grad)[:1]
    oracle.assert_close([form.linear(x, bias)], wanted, x.dtype)
    return form


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", oracle.SPARSITIES)
def test_products(sparsity: float, dtype: torch.dtype) -> None:
    for shape in oracle.SHAPES:
        x, weight, mask, bias = oracle.problem(*shape, sparsity, dtype)
        check(x, weight, mask, bias)
        check(x.t().contiguous().t(), weight, mask, None)


@pytest.mark.parametrize("batch", [1, 70])
def test_columns_beyond_16_bits(batch: int) -> None:
    x, weight, mask, bias = oracle.problem(batch, (1 << 15) + 40, 20, 0.9, torch.float32)
    mask[3, -1] = mask[3, 0] = True
    form = check(x, weight, mask, bias)
    assert form.to_csr()[1].max() == (1 << 15) + 39


@pytest.mark.parametrize("batch", [1, 70])
@pytest.mark.parametrize("structure", ["blocks", "2:4", "rows"])
def test_structure_is_used(structure: str, batch: int) -> None:
    x, weight, mask, bias = oracle.problem(batch, 256, 64, 0.5, torch.float32)
    if structure == "blocks":
        mask = mask[::16, ::16].repeat_interleave(16, 0).repeat_interleave(16, 1)
    elif structure == "2:4":
        mask = (torch.rand(64, 64, 4).argsort(dim=2) < 2).view(64, 256)
    else:  # long runs of columns
        mask = torch.zeros_like(mask)
        mask[:, 7:150] = True
        mask[1::2, 200:] = True
    assert sum(sk.SparsityPattern(mask).structure) > 0
    check(x, weight, mask, bias)


def test_rows_without_entries_and_columns_of_x_that_nothing_reads() -> None:
    x, weight, mask, bias = oracle.problem(1, 300, 70, 0.9, torch.float32)
    mask[:, 100] = mask[5] = mask[69] = False
    x[:, 100] = float("nan")
    form = CompressedWeight(weight, mask)
    out = form.linear(x, bias)
    assert torch.equal(out[0, [5, 69]], bias[[5, 69]])
    assert not out.isnan().any()


def test_memory_is_that_of_kept_entries() -> None:
    mask = torch.rand(200, 300) > 0.9
    form = CompressedWeight(torch.randn(200, 300), mask, keep_dense=False)
    assert form.nbytes == 4 * 201 + 6 * int(mask.sum())
    form.to_dense()
    assert form.nbytes == 4 * 201 + 6 * int(mask.sum())


def test_to_csr_copies() -> None:
    mask = torch.rand(20, 30) > 0.7
    weight = torch.randn(20, 30)
    form = CompressedWeight(weight, mask)
    for part in form.to_csr():
        part.zero_()
    pointer, index, values = form.to_csr()
    assert pointer.dtype == index.dtype == torch.int32
    found = torch.sparse_csr_tensor(pointer, index, values, (20, 30)).to_dense()
    assert torch.equal(found, torch.where(mask, weight, 0))
    # Kept zeros stay.
    assert len(CompressedWeight(torch.zeros(20, 30), mask).to_csr()[2]) == int(mask.sum())


def test_a_later_change_of_the_pattern_changes_nothing() -> None:
    x, weight, mask, _ = oracle.problem(4, 50, 40, 0.8, torch.float32)
    pattern = sk.SparsityPattern(mask)
    form = pattern.compress(weight)
    expected = form.linear(x)
    pattern.update_(~mask)
    assert torch.equal(form.linear(x), expected)


def test_layers_take_it_until_weight_or_mask_change(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    linear = packed.linear
    monkeypatch.setattr(packed, "linear", lambda *a: calls.append(1) or linear(*a))
    layer = sk.nn.MaskedLinear(50, 40, mask=torch.rand(40, 50) > 0.8)
    x = torch.randn(3, 50)
    layer.pattern.compress(layer.weight)
    with torch.no_grad():
        out = layer(x)
        assert len(calls) == 1
    torch.testing.assert_close(out, layer(x))  # gradients are wanted: not by it
    assert len(calls) == 1
    with torch.no_grad():
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (out - layer.bias))
        layer.pattern.compress(layer.weight)
        layer.set_mask(~layer.mask)
        layer(x)
    assert len(calls) == 1


def test_copies() -> None:
    x, weight, mask, bias = oracle.problem(5, 50, 40, 0.8, torch.bfloat16)
    form = CompressedWeight(weight, mask)
    for other in (copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        assert torch.equal(other.linear(x, bias), form.linear(x, bias))


def test_gradients_go_by_the_dense_weight() -> None:
    x, weight, mask, bias = oracle.problem(5, 50, 40, 0.8)
    form = CompressedWeight(weight, mask)
    assert torch.autograd.gradcheck(form.linear, (x.requires_grad_(), bias.requires_grad_()))


def test_the_reference_takes_the_dense_weight() -> None:
    x, weight, mask, bias = oracle.problem(5, 50, 40, 0.8, torch.float32)
    form = CompressedWeight(weight, mask)
    expected = form.linear(x, bias)
    with sk.backend("reference"):
        assert form.algorithm(5) == "dense"
        torch.testing.assert_close(form.linear(x, bias), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_operators(dtype: torch.dtype) -> None:
    x, weight, mask, bias = oracle.problem(5, 50, 40, 0.8, dtype)
    own = packed.pack(weight, sk.SparsityPattern(mask))
    names = torch.ops.sparsekern
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    for shift in (bias, None):
        operator = names.masked_packed_linear.default
        torch.library.opcheck(operator, (x, *own, shift), test_utils=utilities)
        assert torch.equal(operator(x, *own, shift), packed.linear(x, own, shift))
    torch.library.opcheck(names.masked_packed_expand.default, tuple(own), test_utils=utilities)


@pytest.mark.parametrize("columns", [50, (1 << 15) + 40])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_dense_form(dtype: torch.dtype, columns: int) -> None:
    _, weight, mask, _ = oracle.problem(1, columns, 70, 0.8, dtype)
    own = packed.pack(oracle.poison(weight, mask), sk.SparsityPattern(mask))
    for core in (True, False):
        assert torch.equal(packed.expand(own, core), torch.where(mask, weight, 0))


def test_compiled_as_one_graph() -> None:
    x, weight, mask, bias = oracle.problem(5, 50, 40, 0.8, torch.float32)
    form = CompressedWeight(weight, mask)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda t: form.linear(t.relu(), bias), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), form.linear(x.relu(), bias))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("batch", "sparsity", "expected"),
    [
        (1, 0.1, "unstructured"),
        (1, 0.5, "unstructured"),
        (1, 0.98, "unstructured"),
        (64, 0.9, "unstructured"),
        (64, 0.1, "dense"),
        (512, 0.0, "dense"),
    ],
)
def test_choice(batch: int, sparsity: float, expected: str) -> None:
    own = rates.DEFAULTS["avx512"].float32
    nnz = round(4096 * 4096 * (1 - sparsity))
    found = choice.packed_algorithm(batch, 4096, 4096, nnz, torch.float32, 2, own)
    assert found == expected


def test_making_the_dense_weight_counts() -> None:
    own = rates.DEFAULTS["avx512"].float32
    sizes = (256, 1024, 1024, 620_000, torch.float32, 2, own, 0)
    assert choice.packed_algorithm(*sizes, True) == "dense"
    assert choice.packed_algorithm(*sizes, False) == "unstructured"
