"""Compressed weights: which form is chosen, and what they are where no kernels run.

What the compiled core makes of them on the CPU is in test_packed.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import compressed, cuda_rates
from sparsekern.ops.masked.compressed import CompressedWeight

from . import oracle

# Where the compiled core runs, it takes the place of these forms.
reference_only = pytest.mark.parametrize("backend", ["reference"], indirect=True)


def two_of_four(rows: int, columns: int) -> Tensor:
    order = torch.rand(rows, columns // 4, 4).argsort(dim=2)
    return (order < 2).view(rows, columns)


def test_two_of_four_is_found() -> None:
    mask = two_of_four(8, 16)
    assert compressed.is_semi_structured(mask)
    assert not compressed.is_semi_structured(mask[:, :14])  # no multiple of four
    assert not compressed.is_semi_structured(torch.zeros(8, 16, dtype=torch.bool))
    mask[3, 4:8] = torch.tensor([True, True, True, False])
    assert not compressed.is_semi_structured(mask)
    # Four adjacent columns that begin elsewhere do not count.
    shifted = torch.zeros(1, 8, dtype=torch.bool)
    shifted[0, 2:6] = True
    assert compressed.is_semi_structured(shifted)


class _OnGpu:
    """What semi_structured() asks of a dense weight on a GPU."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype, self.device = (rows, columns), dtype, torch.device("cuda", 0)

    def new_zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape)


@pytest.mark.parametrize(
    ("dense", "capability", "fits"),
    [
        (_OnGpu(64, 128, torch.bfloat16), (9, 0), True),
        (_OnGpu(64, 128, torch.float32), (9, 0), False),
        (_OnGpu(48, 128, torch.float16), (9, 0), False),
        (_OnGpu(64, 96, torch.float16), (9, 0), False),
        (_OnGpu(64, 128, torch.float16), (7, 5), False),
    ],
)
def test_conditions_of_semi_structured_matrices(
    dense: Any, capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = torch.ones(64, 128)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda x: converted)
    assert compressed.semi_structured(dense) is (converted if fits else None)

    def fails(*_: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(F, "linear", fails)
    assert compressed.semi_structured(dense) is None


@reference_only
def test_two_of_four_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # The dense weight stands in for torch's form, which only a GPU makes.
    monkeypatch.setattr(compressed, "semi_structured", lambda dense: dense)
    mask, w = two_of_four(32, 64), torch.randn(32, 64)
    form = CompressedWeight(oracle.poison(w, mask), mask)
    assert form.forms == {"semi_structured"}
    assert form.algorithm(3) == "semi_structured"
    assert form.nbytes == 32 * 64 * 4 * 9 // 16
    x = torch.randn(3, 64)
    oracle.assert_close([form.linear(x)], [(x @ (w * mask).T).double()], torch.float32)


@reference_only
def test_two_of_four_without_torchs_kernels_is_a_bitmask() -> None:
    mask, w = two_of_four(32, 64), torch.randn(32, 64)
    form = CompressedWeight(w, mask)
    assert "semi_structured" not in form.forms
    assert torch.equal(form.to_dense(), w * mask)


@pytest.mark.parametrize(("side", "kept"), [(64, 0.4), (32, 0.3), (16, 0.15), (0, 0.45)])
def test_blocks_are_found(side: int, kept: float) -> None:
    size = side or 16
    blocks = torch.rand(1024 // size, 512 // size)
    chosen = blocks <= blocks.flatten().kthvalue(round(kept * blocks.numel())).values
    mask = chosen.repeat_interleave(size, 0).repeat_interleave(size, 1)
    rates = cuda_rates.shipped((9, 0))
    assert compressed.block_side(mask, rates) == (side, int(mask.sum()) if side else 0)
    assert compressed.block_side(mask[:-1], rates) == (0, 0)
    # Where small blocks are multiplied as fast as the whole, they are taken for what they skip.
    found = compressed.block_side(mask, rates._replace(blocks16=1.0))
    assert found == (16, int(mask.sum()))


@reference_only
def test_blocks_are_multiplied_alone() -> None:
    chosen = torch.zeros(4, 6, dtype=torch.bool)
    chosen[0, 5] = chosen[3, 1] = chosen[3, 2] = True
    mask = chosen.repeat_interleave(64, 0).repeat_interleave(64, 1)
    mask &= torch.rand(mask.shape) > 0.2  # holes in blocks
    w = torch.randn(mask.shape)
    form = CompressedWeight(oracle.poison(w, mask), mask)
    if "blocks" not in form.forms:
        pytest.skip("this torch does not multiply blocks on the CPU")
    assert form.algorithm(100) == "blocks"
    x, bias = torch.randn(5, 20, 384), torch.randn(256)
    wanted = x.double() @ torch.where(mask, w, 0).double().T + bias.double()
    oracle.assert_close([form.linear(x, bias)], [wanted], torch.float32)


@reference_only
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("keep_dense", [True, False])
def test_without_kernels_it_is_stored_compressed(keep_dense: bool, dtype: torch.dtype) -> None:
    x, w, mask, bias = oracle.problem(6, 200, 50, 0.9, dtype)
    form = CompressedWeight(oracle.poison(w, mask), mask, keep_dense=keep_dense)
    assert form.forms == frozenset()
    before = form.nbytes
    wanted = oracle.linear(x, w, mask, bias, torch.zeros(6, 50).to(dtype))[0]
    x.requires_grad_()
    out = form.linear(x, bias)
    oracle.assert_close([out.detach()], [wanted], dtype)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    expected = torch.where(mask, w, 0).double().sum(dim=0).expand(6, -1)
    oracle.assert_close([gradient], [expected], dtype)
    if dtype != torch.float64:
        assert before < w.nbytes
        assert form.nbytes == before + (w.nbytes if keep_dense else 0)
    assert f"nnz={int(mask.sum())}" in repr(form)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_weights(shape: tuple[int, int]) -> None:
    form = CompressedWeight(torch.zeros(shape), torch.ones(shape, dtype=torch.bool))
    assert form.linear(torch.zeros(3, shape[1])).shape == (3, shape[0])
    assert form.to_dense().shape == shape


def test_errors() -> None:
    pattern = sk.SparsityPattern(torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"weight has shape \(6, 4\) and the pattern \(4, 6\)"):
        pattern.compress(torch.zeros(6, 4))
    with pytest.raises(TypeError, match=r"weight must be float32.*got torch\.int64"):
        pattern.compress(torch.zeros(4, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"weight is on meta and the pattern on cpu"):
        pattern.compress(torch.zeros(4, 6, device="meta"))
    form = pattern.compress(torch.zeros(4, 6))
    for x, bias, error, message in (
        (torch.zeros(2, 5), None, ValueError, r"x must have shape \(\.\.\., 6\).*got \(2, 5\)"),
        (torch.zeros(2, 6).half(), None, TypeError, r"x has dtype torch\.float16"),
        (torch.zeros(2, 6, device="meta"), None, ValueError, r"x is on meta"),
        (torch.zeros(2, 6), torch.zeros(3), ValueError, r"bias must have shape \(4,\).*got \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            form.linear(x, bias)
