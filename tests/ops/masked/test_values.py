"""Results and gradients against the definition: dtypes, shapes, sparsities, layouts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from ..conftest import compiled_only
from . import oracle


def run(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, grad: Tensor, **options: str
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    pattern = sk.SparsityPattern(mask)
    shift = None if bias is None else leaves[2]
    out = sk.masked_linear(leaves[0], leaves[1], pattern, shift, **options)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("shape", oracle.SHAPES, ids=str)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_linear_is_the_definition(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, _, rows = shape
    for sparsity in oracle.SPARSITIES:
        x, weight, mask, bias = oracle.problem(*shape, sparsity, dtype)
        grad = torch.randn(batch, rows).to(dtype)
        expected = oracle.linear(x, weight, mask, bias, grad)
        poisoned = oracle.poison(weight, mask)
        found = run(x, poisoned, mask, bias, grad)
        oracle.assert_close(found, expected, dtype)
        with torch.no_grad():
            plain = sk.masked_linear(x, poisoned, sk.SparsityPattern(mask), bias)
        assert torch.equal(plain, found[0])
        dense = oracle.linear(x, weight, mask, None, grad, dense=True)
        oracle.assert_close(run(x, poisoned, mask, None, grad, weight_grad="dense"), dense, dtype)


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@compiled_only
@pytest.mark.parametrize("batch", [48, 96, 192, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("algorithm", "threads")
def test_batches_shared_out_by_lanes(batch: int, dtype: torch.dtype) -> None:
    """Tiles of every width by threads, and a batch that does not divide by them."""
    x, weight, mask, bias = oracle.problem(batch, 270, 130, 0.9, dtype)
    grad = torch.randn(batch, 130).to(dtype)
    expected = oracle.linear(x, weight, mask, bias, grad)
    found = run(x, oracle.poison(weight, mask), mask, bias, grad)
    oracle.assert_close(found, expected, dtype)
    again = run(x, oracle.poison(weight, mask), mask, bias, grad)
    assert all(map(torch.equal, found, again))
    pattern = sk.SparsityPattern(mask)
    product = sk.spmm(pattern, pattern.gather(weight), x.t())
    oracle.assert_close([product.t() + bias], expected[:1], dtype, long=True)


def test_a_mask_is_as_good_as_a_pattern() -> None:
    x, weight, mask, bias = oracle.problem(9, 40, 20, 0.8, torch.float32)
    expected = sk.masked_linear(x, weight, sk.SparsityPattern(mask), bias)
    assert torch.equal(sk.masked_linear(x, weight, mask, bias), expected)


@pytest.mark.usefixtures("algorithm")
def test_leading_dimensions() -> None:
    x, weight, mask, bias = oracle.problem(24, 40, 20, 0.8, torch.float32)
    expected = sk.masked_linear(x, weight, mask, bias)
    assert torch.equal(
        sk.masked_linear(x.view(2, 3, 4, 40), weight, mask, bias), expected.view(2, 3, 4, 20)
    )
    single = sk.masked_linear(x[0], weight, mask, bias)
    assert single.shape == (20,)
    torch.testing.assert_close(single, expected[0])
    for empty in (x[:0], x[:0].view(3, 0, 40)):
        leaf, w = empty.clone().requires_grad_(), weight.clone().requires_grad_()
        out = sk.masked_linear(leaf, w, mask, bias)
        assert out.shape == (*empty.shape[:-1], 20)
        out.sum().backward()
        assert not w.grad.any()
        assert leaf.grad.shape == empty.shape


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize(("columns", "rows"), [(0, 5), (5, 0), (0, 0)])
def test_no_features(columns: int, rows: int) -> None:
    x, weight, mask, bias = oracle.problem(4, columns, rows, 0.5, torch.float32)
    grad = torch.randn(4, rows)
    found = run(x, weight, mask, bias, grad)
    oracle.assert_close(found, oracle.linear(x, weight, mask, bias, grad), torch.float32)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("batch", [1, 40])
def test_layouts(batch: int) -> None:
    x, weight, mask, bias = oracle.problem(batch, 70, 50, 0.8, torch.float32)
    grad = torch.randn(batch, 50)
    expected = oracle.linear(x, weight, mask, bias, grad)

    def spaced(t: Tensor) -> Tensor:  # neither dimension adjacent
        wide = torch.full((2 * t.shape[0], 2 * t.shape[1]), float("nan"))
        wide[::2, ::2] = t
        return wide[::2, ::2]

    def padded(t: Tensor) -> Tensor:
        wide = torch.full((t.shape[0], t.shape[1] + 3), float("nan"))
        wide[:, 1:-2] = t
        return wide[:, 1:-2]

    for lay in (spaced, padded, lambda t: t.t().contiguous().t()):
        found = run(lay(x), lay(weight), lay(mask.float()) == 1, bias, lay(grad))
        oracle.assert_close(found, expected, torch.float32)
    # A gradient without memory of its own, as sum() makes it.
    leaf = x.clone().requires_grad_()
    sk.masked_linear(leaf, weight, mask).sum().backward()
    ones = oracle.linear(x, weight, mask, None, torch.ones(batch, 50))
    oracle.assert_close([leaf.grad], ones[1:2], torch.float32)
    repeated = x[:1].expand(batch, 70)
    expected = oracle.linear(repeated, weight, mask, bias, grad)
    oracle.assert_close(
        [sk.masked_linear(repeated, weight, mask, bias)], expected[:1], torch.float32
    )


def test_rows_without_an_entry() -> None:
    x, weight, mask, bias = oracle.problem(20, 90, 70, 0.9, torch.float32)
    mask[::3] = False
    mask[:, 1::4] = False
    grad = torch.randn(20, 70)
    found = run(x, oracle.poison(weight, mask), mask, bias, grad)
    oracle.assert_close(found, oracle.linear(x, weight, mask, bias, grad), torch.float32)
    assert torch.equal(found[0][:, ::3], bias[::3].expand(20, -1))


@pytest.mark.usefixtures("algorithm")
def test_only_some_gradients() -> None:
    x, weight, mask, bias = oracle.problem(20, 50, 40, 0.8, torch.float32)
    grad = torch.randn(20, 40)
    full = run(x, weight, mask, bias, grad)[1:]
    for live in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        leaves = [t.clone().requires_grad_(i in live) for i, t in enumerate((x, weight, bias))]
        sk.masked_linear(leaves[0], leaves[1], mask, leaves[2]).backward(grad)
        for i, leaf in enumerate(leaves):
            if i in live:
                torch.testing.assert_close(leaf.grad, full[i])
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("d", [1, 2, 40, 130])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", oracle.SPARSITIES)
def test_spmm_and_sddmm(d: int, dtype: torch.dtype, sparsity: float) -> None:
    _, weight, mask, _ = oracle.problem(1, 90, 70, sparsity, dtype)
    pattern = sk.SparsityPattern(mask)
    values, b = pattern.gather(weight), torch.randn(90, d).to(dtype)
    left = torch.randn(70, d).to(dtype)
    for right in (b, b.t().contiguous().t()):
        v, r = values.detach().requires_grad_(), right.detach().requires_grad_()
        out = sk.spmm(pattern, v, r)
        out.backward(left)
        kept = torch.where(mask, weight.double(), 0)
        dense = left.double() @ b.double().T
        found = [out.detach(), v.grad, r.grad]
        expected = [kept @ b.double(), dense[mask], kept.T @ left.double()]
        oracle.assert_close(found, expected, dtype)
    for first in (left, left.t().contiguous().t()):
        a, c = first.detach().requires_grad_(), b.t().detach().requires_grad_()
        sampled = sk.sddmm(a, c, pattern)
        sampled.backward(values)
        found = [sampled.detach(), a.grad, c.grad]
        expected = [dense[mask], kept @ b.double(), left.double().T @ kept]
        oracle.assert_close(found, expected, dtype)


def test_spmm_of_a_vector() -> None:
    _, weight, mask, _ = oracle.problem(1, 90, 70, 0.8, torch.float32)
    pattern, x = sk.SparsityPattern(mask), torch.randn(90)
    out = sk.spmm(pattern, pattern.gather(weight), x)
    oracle.assert_close([out], [(weight.double() * mask) @ x.double()], torch.float32)


@pytest.mark.parametrize("d", [0, 3])
def test_products_without_entries(d: int) -> None:
    pattern = sk.SparsityPattern(torch.zeros(4, 6, dtype=torch.bool))
    values = torch.zeros(0, requires_grad=True)
    b = torch.randn(6, d, requires_grad=True)
    out = sk.spmm(pattern, values, b)
    assert torch.equal(out, torch.zeros(4, d))
    out.sum().backward()
    assert not b.grad.any()
    assert sk.sddmm(torch.randn(4, d), torch.randn(d, 6), pattern).shape == (0,)
    full = sk.SparsityPattern(torch.ones(4, 6, dtype=torch.bool))
    assert sk.sddmm(torch.randn(4, d), torch.randn(d, 6), full).shape == (24,)


@pytest.mark.usefixtures("algorithm")
def test_the_same_call_gives_the_same_bits() -> None:
    x, weight, mask, bias = oracle.problem(300, 200, 150, 0.7, torch.float32)
    grad = torch.randn(300, 150)
    first = run(x, weight, mask, bias, grad)
    for _ in range(3):
        for again, once in zip(run(x, weight, mask, bias, grad), first, strict=True):
            assert torch.equal(again, once)


@pytest.mark.usefixtures("algorithm")
def test_one_thread_and_two_agree() -> None:
    x, weight, mask, bias = oracle.problem(70, 600, 500, 0.9, torch.float32)
    grad = torch.randn(70, 500)
    expected = oracle.linear(x, weight, mask, bias, grad)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = run(x, weight, mask, bias, grad)
            oracle.assert_close(found, expected, torch.float32)
    finally:
        torch.set_num_threads(before)


def test_values_of_any_size_round_to_16_bits(backend: str) -> None:
    # From below the smallest subnormal to beyond the largest number, and ties between neighbours.
    exponents = torch.arange(-30, 20, dtype=torch.float64).exp2()
    steps = torch.tensor([1, 1 + 2**-11, 1 + 2**-10, 1.25, 1 + 3 * 2**-11, 2 - 2**-12])
    values = (exponents[:, None] * steps).flatten()
    values = torch.cat([values, -values, torch.tensor([0.0, float("inf"), float("nan")])]).float()
    pattern = sk.SparsityPattern(torch.eye(values.numel(), dtype=torch.bool))
    for dtype in (torch.float16, torch.bfloat16):
        left = values.to(dtype)
        # Products with 1 + 2^-7 need rounding in either type.
        out = sk.sddmm(left[:, None], torch.full((1, values.numel()), 1 + 2**-7).to(dtype), pattern)
        expected = (left.float() * (1 + 2**-7)).to(dtype)
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(out.nan_to_num(1.5), expected.nan_to_num(1.5))
        dense = sk.masked_linear(
            torch.ones(1, values.numel(), dtype=dtype).mul(1 + 2**-7),
            torch.diag(left),
            pattern,
        )
        assert torch.equal(dense[0].nan_to_num(1.5), expected.nan_to_num(1.5))


def test_lazily_negated_operands() -> None:
    """Views that torch negates when they are read, as the imaginary part of a conjugate is."""
    mask = torch.rand(9, 8) > 0.5
    pattern = sk.SparsityPattern(mask)
    x, weight, bias = torch.randn(5, 8), torch.randn(9, 8), torch.randn(9)
    lazy = torch._neg_view
    for operand in (mask, pattern):
        expected = sk.masked_linear(-x, -weight, operand, -bias)
        assert torch.equal(sk.masked_linear(lazy(x), lazy(weight), operand, lazy(bias)), expected)
    values, b = pattern.gather(weight), x.T.contiguous()
    assert torch.equal(sk.spmm(pattern, lazy(values), lazy(b)), sk.spmm(pattern, -values, -b))
    a, right = torch.randn(9, 4), torch.randn(4, 8)
    assert torch.equal(sk.sddmm(lazy(a), lazy(right), pattern), sk.sddmm(-a, -right, pattern))
    images, filters = torch.randn(2, 3, 7, 7), torch.randn(6, 3, 3, 3)
    kept, shift = torch.rand(6, 3, 3, 3) > 0.9, torch.randn(6)
    got = sk.masked_conv2d(lazy(images), lazy(filters), kept, lazy(shift))
    assert torch.equal(got, sk.masked_conv2d(-images, -filters, kept, -shift))
