"""Operands whose batch is adjacent in memory: read and written where they lie, or copied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle

# Whole panels of each width, several of them, more than are taken at a time, and what is no whole
# vector.
LANES = (16, 48, 64, 128, 200, 2080)


def products(pattern: sk.SparsityPattern, values: Tensor, b: Tensor, grad: Tensor) -> list[Tensor]:
    """The product, its gradients for values and b, and the entries of grad @ b.t()."""
    leaves = [values.detach().requires_grad_(), b.detach().requires_grad_()]
    out = sk.spmm(pattern, *leaves)
    out.backward(grad)
    found = [out.detach(), *(leaf.grad for leaf in leaves)]
    return [*found, sk.sddmm(grad, b.t(), pattern)]


def expected_products(mask: Tensor, values: Tensor, b: Tensor, grad: Tensor) -> list[Tensor]:
    """The same in float64."""
    dense = torch.zeros(mask.shape, dtype=torch.float64)
    dense[mask] = values.double()
    b, grad = b.double(), grad.double()
    sampled = (grad @ b.t())[mask]
    return [dense @ b, sampled, dense.t() @ grad, sampled]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.5, 0.995])
def test_products(lanes: int, dtype: torch.dtype, sparsity: float) -> None:
    _, weight, mask, _ = oracle.problem(1, 210, 90, sparsity, dtype)
    mask[3] = False
    mask[:, 5] = False
    pattern = sk.SparsityPattern(mask)
    values = pattern.gather(weight)
    b, grad = torch.randn(210, lanes).to(dtype), torch.randn(90, lanes).to(dtype)
    expected = expected_products(mask, values, b, grad)
    found = products(pattern, values, b, grad)
    oracle.assert_close(found, expected, dtype, long=True)
    assert all(x.is_contiguous() for x in found)

    wide_b, wide_grad = (torch.full((x.shape[0], lanes + 7), float("nan")) for x in (b, grad))
    wide_b, wide_grad = wide_b.to(dtype), wide_grad.to(dtype)
    wide_b[:, 2 : lanes + 2], wide_grad[:, 5 : lanes + 5] = b, grad
    part_b, part_grad = wide_b[:, 2 : lanes + 2], wide_grad[:, 5 : lanes + 5]
    oracle.assert_close(products(pattern, values, part_b, part_grad), expected, dtype, long=True)
    mixed = products(pattern, values, b, grad.t().contiguous().t())
    oracle.assert_close(mixed, expected, dtype, long=True)


@pytest.mark.parametrize("structure", ["blocks", "2:4"])
def test_structured_patterns(structure: str) -> None:
    if structure == "blocks":
        kept = torch.rand(16, 32) > 0.5
        mask = kept.repeat_interleave(4, 0).repeat_interleave(4, 1)
    else:
        mask = torch.rand(64, 32, 4).argsort(dim=2).view(64, 128) < 2
    pattern = sk.SparsityPattern(mask)
    assert pattern.structure.rows or pattern.structure.strip
    values, b, grad = torch.randn(pattern.nnz), torch.randn(128, 64), torch.randn(64, 64)
    expected = expected_products(mask, values, b, grad)
    oracle.assert_close(products(pattern, values, b, grad), expected, torch.float32, long=True)
