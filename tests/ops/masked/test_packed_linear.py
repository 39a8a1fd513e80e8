"""Linear layers of given kept values against the definition: dtypes, layouts, algorithms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import packed_linear

from ..conftest import compiled_only
from . import oracle

SHAPES = ((0, 30, 20), (1, 300, 130), (17, 33, 16), (64, 70, 130), (1100, 40, 33))


def run(
    x: Tensor, values: Tensor, pattern: sk.SparsityPattern, bias: Tensor | None, grad: Tensor
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, values, bias) if t is not None]
    shift = None if bias is None else leaves[2]
    out = packed_linear(leaves[0], leaves[1], pattern, shift)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_values_are_the_definition(
    shape: tuple[int, int, int], dtype: torch.dtype, backend: str
) -> None:
    batch, _, rows = shape
    for sparsity in (0.0, 0.9, 1.0):
        x, weight, mask, bias = oracle.problem(*shape, sparsity, dtype)
        mask[2] = False
        grad = torch.randn(batch, rows).to(dtype)
        pattern = sk.SparsityPattern(mask)
        values = pattern.gather(weight)
        expected = oracle.linear(x, weight, mask, bias, grad)
        expected[2] = expected[2][mask]
        found = run(x, values, pattern, bias, grad)
        oracle.assert_close(found, expected, dtype)
        assert all(t.is_contiguous() for t in found)
        with torch.no_grad():
            assert torch.equal(packed_linear(x, values, pattern, bias), found[0])
        if batch > 1:  # features-major in, features-major out
            turned = run(x.t().contiguous().t(), values, pattern, bias, grad.t().contiguous().t())
            oracle.assert_close(turned, expected, dtype)
            lies_so = [t.t().is_contiguous() for t in turned[:2]]
            assert all(lies_so) or backend == "reference"
        spaced = x.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
        oracle.assert_close(run(spaced, values, pattern, bias, grad), expected, dtype)


@pytest.mark.usefixtures("algorithm")
def test_the_gradient_is_that_of_the_function() -> None:
    x, weight, mask, bias = oracle.problem(5, 9, 7, 0.5)
    pattern = sk.SparsityPattern(mask)
    leaves = [t.requires_grad_() for t in (x, pattern.gather(weight), bias)]
    assert torch.autograd.gradcheck(lambda x, v, b: packed_linear(x, v, pattern, b), leaves)


@compiled_only
def test_what_is_not_kept_never_meets_a_nan() -> None:
    x, weight, mask, _ = oracle.problem(20, 80, 60, 0.95, torch.float32)
    mask[:, 3] = False
    x[:, 3] = float("nan")
    pattern = sk.SparsityPattern(mask)
    found = run(x, pattern.gather(weight), pattern, None, torch.randn(20, 60))
    assert all(t.isfinite().all() for t in found)
    x[:, 4], mask[0, 4] = float("nan"), True
    pattern = sk.SparsityPattern(mask)
    out = packed_linear(x, pattern.gather(weight), pattern)
    assert torch.equal(out.isnan(), mask[:, 4].expand(20, 60))


@compiled_only
def test_operators_keep_their_word() -> None:
    x, weight, mask, bias = oracle.problem(20, 30, 40, 0.8, torch.float32)
    pattern = sk.SparsityPattern(mask)
    values = pattern.gather(weight)
    for along in (False, True):
        for sparse in (False, True):
            arguments = (x, values, bias, pattern.tensors, sparse, along)
            torch.library.opcheck(torch.ops.sparsekern.masked_given_linear.default, arguments)
            for needs in ([True, True, True], [False, True, False], [True, False, False]):
                torch.library.opcheck(
                    torch.ops.sparsekern.masked_given_linear_grad.default,
                    (torch.randn(20, 40), x, values, pattern.tensors, needs, sparse, sparse, along),
                )


def test_errors() -> None:
    x, weight, mask, _ = oracle.problem(2, 60, 40, 0.9, torch.float32)
    pattern = sk.SparsityPattern(mask)
    values = pattern.gather(weight)
    for arguments, kind, message in (
        ((x, values, mask), TypeError, "pattern must be a SparsityPattern, got Tensor"),
        ((x, values[1:], pattern), ValueError, "values must have shape"),
        ((x[:, 1:], values, pattern), ValueError, r"x must have shape \(\.\.\., 60\)"),
        ((x.double(), values, pattern), TypeError, "values is torch.float32"),
        ((x, values, pattern, torch.zeros(3)), ValueError, r"bias must have shape \(40,\)"),
        ((x.to("meta"), values, pattern), ValueError, "x on meta"),
    ):
        with pytest.raises(kind, match=message):
            packed_linear(*arguments)
