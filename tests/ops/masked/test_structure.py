"""Blocks and N:M groups: found in patterns, used by products, chosen by their own model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import choice, convolution
from sparsekern.ops.masked.pattern import Structure
from sparsekern.ops.masked.rates import DEFAULTS

from ..conftest import compiled_only
from . import oracle


def blocks(rows: int, columns: int, height: int, width: int, sparsity: float = 0.7) -> Tensor:
    """Blocks kept or removed whole; those on the lower and right edge may be cut off."""
    kept = torch.rand(-(-rows // height), -(-columns // width)) >= sparsity
    wide = kept.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return wide[:rows, :columns].contiguous()


def groups(rows: int, columns: int, keep: int, of: int) -> Tensor:
    """``keep`` entries of every ``of`` adjacent ones, the last group of a row cut off."""
    whole = -(-columns // of)
    order = torch.rand(rows, whole, of).argsort(dim=2)
    return (order < keep).view(rows, whole * of)[:, :columns].contiguous()


# Rows and columns off the multiples of 4 and 64, one and several tasks of rows.
MASKS = {
    "16 x 16": lambda: blocks(160, 192, 16, 16),
    "4 x 4, ragged": lambda: blocks(131, 206, 4, 4),
    "16 x 1": lambda: blocks(96, 150, 16, 1),
    "1 x 16": lambda: blocks(70, 160, 1, 16),
    "some rows alone": lambda: torch.cat([blocks(66, 130, 4, 1), torch.rand(31, 130) > 0.7]),
    "2:4": lambda: groups(101, 256, 2, 4),
    "2:4, part of a strip": lambda: groups(37, 200, 2, 4),
    "1:4": lambda: groups(70, 192, 1, 4),
    "4:8, ragged": lambda: groups(67, 202, 4, 8),
    "2:4, then not": lambda: torch.cat([groups(64, 192, 2, 4), torch.rand(9, 192) > 0.5]),
}


def found(mask: Tensor) -> Structure:
    return sk.SparsityPattern(mask).structure


@compiled_only  # which looks for it
def test_what_is_found() -> None:
    mask = MASKS["16 x 16"]()
    nnz = int(mask.sum())
    assert found(mask) == Structure(0, nnz, nnz)
    mask = MASKS["4 x 4, ragged"]()
    assert found(mask) == Structure(0, int(mask[:128].sum()), int(mask[:, :204].sum()))
    mask = MASKS["16 x 1"]()
    assert found(mask).rows == int(mask.sum())
    assert found(MASKS["1 x 16"]()).columns > 0
    assert found(MASKS["2:4"]()) == Structure(32, 0, 0)
    assert found(MASKS["2:4, part of a strip"]()) == Structure(32, 0, 0)
    assert found(MASKS["1:4"]()) == Structure(16, 0, 0)
    assert found(MASKS["2:4, then not"]()).strip == 0
    assert found(torch.rand(128, 256) > 0.5) == Structure()
    assert found(torch.ones(64, 128, dtype=torch.bool)) == Structure()
    assert found(torch.zeros(64, 128, dtype=torch.bool)) == Structure()
    # As many entries in each row and strip but one, whose neighbour has one more.
    shifted = groups(64, 256, 1, 4)
    shifted[40, :128] = shifted[40, :128].flip(0)
    shifted[40, 60:64], shifted[40, 64:68] = False, torch.tensor([True, True, False, False])
    assert int(shifted.sum(1).max()) == int(shifted.sum(1).min())
    assert found(shifted).strip == 0


@compiled_only  # which looks for it
def test_update_forgets_what_was_found() -> None:
    pattern = sk.SparsityPattern(MASKS["16 x 16"]())
    pattern.update_(torch.rand(160, 192) > 0.6)
    assert pattern.structure == Structure()
    x, weight = torch.randn(20, 192), torch.randn(160, 192)
    expected = x.double() @ torch.where(pattern.mask, weight.double(), 0).T
    oracle.assert_close([sk.masked_linear(x, weight, pattern)], [expected], torch.float32)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_products_are_the_definition(make: object, dtype: torch.dtype) -> None:
    mask = make()  # type: ignore[operator]
    rows, columns = mask.shape
    pattern = sk.SparsityPattern(mask)
    for batch in (1, 17, 40, 100, 300):
        x, weight, _, bias = oracle.problem(batch, columns, rows, 0.5, dtype)
        grad = torch.randn(batch, rows).to(dtype)
        expected = oracle.linear(x, weight, mask, bias, grad)
        leaves = [t.requires_grad_() for t in (x, oracle.poison(weight, mask), bias)]
        out = sk.masked_linear(leaves[0], leaves[1], pattern, leaves[2])
        out.backward(grad)
        results = [out.detach(), *(leaf.grad for leaf in leaves)]
        oracle.assert_close(results, expected, dtype, long=True)
        with torch.no_grad():
            plain = sk.masked_linear(*leaves[:2], pattern, leaves[2])
        assert torch.equal(plain, results[0])


def test_the_choice_knows_blocks() -> None:
    rates = DEFAULTS["avx512"].float32

    def chosen(part: str, nnz: int, in_blocks: int, batch: int = 256) -> str:
        return choice.algorithm(
            part, batch, 1024, 1024, nnz, torch.float32, 2, rates, in_blocks=in_blocks
        )

    for part in choice.PARTS:
        assert chosen(part, 100_000, 0) == "sparse"
        assert chosen(part, 100_000, 100_000) == "block"
        assert chosen(part, 100_000, 20_000) == "sparse"
        assert chosen(part, 1 << 20, 1 << 20) == "dense"
        steps = range(0, 1 << 20, 1 << 14)
        # Blocks are never a reason for the dense product, and are taken at higher densities.
        dense = [sum(chosen(part, n, n * share) == "dense" for n in steps) for share in (0, 1)]
        assert dense[1] <= dense[0]
    assert chosen("forward", 100_000, 100_000, batch=1) == "block"


@compiled_only
def test_pointwise_convolutions_know_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_here", lambda dtype: (2, DEFAULTS["avx512"].float32))
    x = torch.randn(1, 1024, 16, 16).to(memory_format=torch.channels_last)
    weight = torch.randn(1024, 1024, 1, 1)
    masks = {"dense": torch.rand(1024, 1024) > 0.3, "sparse": blocks(1024, 1024, 4, 4, 0.3)}
    for expected, mask in masks.items():
        pattern = sk.SparsityPattern(mask.view_as(weight))
        assert convolution.algorithms(x, weight, pattern)[0] == expected
