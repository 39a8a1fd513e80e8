"""Bitmask-compressed weights on the CUDA kernels: on a GPU, and emulated everywhere."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import bitmask, compressed, cuda_choice

from . import oracle

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")
# Rows, columns, sparsity: one tile exactly, a corner of one, edges on both sides, nothing and
# everything kept, rows that are no multiple of 16 bytes, columns for two splits (32 tiles).
WEIGHTS = [
    (16, 64, 0.5),
    (1, 1, 0.0),
    (33, 130, 0.9),
    (50, 200, 0.0),
    (70, 65, 1.0),
    (5, 2300, 0.95),
]
# Each number of rows that a block takes, and more and less than that.
BATCHES = (1, 2, 3, 7, 8, 13, 17)


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


def weight(rows: int, columns: int, sparsity: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight with NaN and infinities where its mask is False, and the mask."""
    mask = torch.rand(rows, columns) >= sparsity
    return oracle.poison(torch.randn(rows, columns).to(dtype), mask), mask


@pytest.mark.parametrize("dtype", bitmask.DTYPES, ids=str)
@pytest.mark.parametrize("sizes", WEIGHTS, ids=str)
def test_layout(sizes: tuple[int, int, float], dtype: torch.dtype, backend: str) -> None:
    w, mask = weight(*sizes, dtype)
    nnz, kept = int(mask.sum()), torch.where(mask, w, 0)
    wanted = bitmask.pack(mask, w, nnz, kernels=False)
    strided = torch.stack([w, w]).to(backend)[0]
    for source in (strided, strided.t().contiguous().t()):
        found = bitmask.pack(mask.to(backend), source, nnz, kernels=True)
        end = int(wanted.offsets[-1]) * 16 // dtype.itemsize
        assert end <= found.values.numel()
        assert torch.equal(found.words.cpu(), wanted.words)
        assert torch.equal(found.offsets.cpu(), wanted.offsets)
        assert torch.equal(found.values[:end].cpu(), wanted.values[:end])
        assert torch.equal(bitmask.expand(found, kernels=True).cpu(), kept)
    assert torch.equal(bitmask.expand(wanted, kernels=False), kept)


def test_layout_by_its_words() -> None:
    """By the definition: bit 8s + 2r + l of lane i is half l of register r of step s."""
    mask, w = torch.zeros(16, 64, dtype=torch.bool), torch.zeros(16, 64)
    for lane, step, register, half in [(0, 0, 0, 0), (5, 1, 1, 1), (31, 3, 3, 1), (5, 3, 2, 0)]:
        row = lane // 4 + (8 if register in (1, 3) else 0)
        column = 16 * step + lane % 4 * 2 + half + (8 if register in (2, 3) else 0)
        mask[row, column], w[row, column] = True, 1000 * lane + 8 * step + 2 * register + half
    packed = bitmask.pack(mask, w, 4, kernels=False)
    words = packed.words[0].tolist()
    assert [(i, word % 2**32) for i, word in enumerate(words) if word] == [
        (0, 1),
        (5, 1 << 11 | 1 << 28),
        (31, 1 << 31),
    ]
    assert packed.values[:4].tolist() == [0, 5011, 5028, 31031]
    assert packed.offsets.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", bitmask.DTYPES, ids=str)
@pytest.mark.parametrize("sizes", WEIGHTS, ids=str)
def test_products(sizes: tuple[int, int, float], dtype: torch.dtype, backend: str) -> None:
    w, mask = weight(*sizes, dtype)
    packed = bitmask.pack(mask.to(backend), w.to(backend), int(mask.sum()), kernels=True)
    kept = torch.where(mask, w, 0).double()
    wide = torch.randn(BATCHES[-1], sizes[1] + 1).to(dtype)
    for batch in BATCHES:
        shift = torch.randn(sizes[0]).to(dtype) if batch % 2 else None
        # Rows that begin at odd elements, and rows that do not.
        for x in (wide[:batch, 1:], wide[:batch, :-1].contiguous()):
            there = x.to(backend) if x.is_contiguous() else wide.to(backend)[:batch, 1:]
            wanted = x.double() @ kept.T + (0 if shift is None else shift.double())
            on_device = None if shift is None else shift.to(backend)
            for tensor_cores in (False, True) if dtype != torch.float32 else (False,):
                out = bitmask.linear(there, packed, on_device, tensor_cores)
                oracle.assert_close([out.cpu()], [wanted], dtype, long=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_more_tiles_than_a_warp_knows_at_once(dtype: torch.dtype, backend: str) -> None:
    w, mask = weight(20, 41_000, 0.99, dtype)  # 641 tiles for 8 or 16 warps; offsets come by 32
    mask[:, 9_000:9_300], mask[:16, 20_000:30_000] = False, False
    mask[:, 12_000:12_128] = True  # more values than are loaded ahead
    w = oracle.poison(torch.randn_like(w), mask)
    packed = bitmask.pack(mask.to(backend), w.to(backend), int(mask.sum()), kernels=True)
    kept = torch.where(mask, w, 0).double()
    for batch in (1, 3, 9):
        x = torch.randn(batch, 41_000).to(dtype)
        for tensor_cores in (False, True) if dtype != torch.float32 else (False,):
            out = bitmask.linear(x.to(backend), packed, None, tensor_cores)
            oracle.assert_close([out.cpu()], [x.double() @ kept.T], dtype, long=True)


def test_what_a_row_skips_has_no_influence_without_tensor_cores(backend: str) -> None:
    w, mask = weight(40, 130, 0.9, torch.bfloat16)
    mask[:, 77] = False
    packed = bitmask.pack(mask.to(backend), w.to(backend), int(mask.sum()), kernels=True)
    x = torch.randn(3, 130, dtype=torch.bfloat16, device=backend)
    x[:, 77] = float("nan")
    assert torch.isfinite(bitmask.linear(x, packed, None, False)).all()


def test_products_are_planned_to_fill_the_device(emulated_cuda: ModuleType) -> None:
    def plan(rows: int, columns: int, batch: int, tensor_cores: bool, code: int = 2) -> tuple:
        shape = (0, 0, 0, code, rows, columns)
        return emulated_cuda.bitmask_plan(shape, batch, tensor_cores, 132)

    # Tensor cores, rows of x in a block, strips, splits, blocks of x.
    assert plan(4096, 4096, 1, False) == (False, 1, 256, 1, 1)
    assert plan(4096, 4096, 16, True) == (True, 16, 128, 2, 1)
    assert plan(4096, 4096, 5, True) == (True, 8, 128, 2, 1)
    assert plan(1024, 4096, 3, False) == (False, 4, 64, 4, 1)
    assert plan(1000, 512, 2, False) == (False, 2, 63, 1, 1)  # 8 tiles: none for a second split
    assert plan(16, 1 << 20, 1, True, code=0) == (False, 1, 1, 264, 1)  # float32
    assert plan(4096, 4096, 33, True) == (True, 16, 128, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_pass_opcheck(dtype: torch.dtype, backend: str) -> None:
    w, mask = weight(20, 70, 0.8, dtype)
    packed = bitmask.pack(mask.to(backend), w.to(backend), int(mask.sum()), kernels=True)
    x = torch.randn(5, 70, dtype=dtype, device=backend)
    linear = torch.ops.sparsekern.masked_cuda_bitmask_linear.default
    for shift in (None, torch.randn(20, dtype=dtype, device=backend)):
        torch.library.opcheck(linear, (x, *packed, shift, False), test_utils=UTILITIES)
    expand = torch.ops.sparsekern.masked_cuda_bitmask_expand.default
    torch.library.opcheck(expand, tuple(packed), test_utils=UTILITIES)


def test_a_batch_takes_the_form_that_suits_it(backend: str) -> None:
    w, mask = weight(64, 192, 0.9, torch.float16)
    pattern = sk.SparsityPattern(mask.to(backend))
    form = pattern.compress(w.to(backend))
    assert form.forms == {"bitmask"}
    assert form.nbytes < 64 * 192 * 2 / 4
    kept = torch.where(mask, w, 0)
    assert torch.equal(form.to_dense().cpu(), kept)
    for batch, expected in ((1, "few"), (16, "panels"), (40, "dense")):
        assert form.algorithm(batch) == expected
        x = torch.randn(batch, 192, dtype=torch.float16)
        out = form.linear(x.to(backend))
        oracle.assert_close([out.cpu()], [x.double() @ kept.double().T], torch.float16, long=True)


def test_masked_linear_takes_it_until_something_changes(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, mask = weight(24, 100, 0.9, torch.float32)
    w, mask = w.to(backend).requires_grad_(), mask.to(backend)
    pattern = sk.SparsityPattern(mask)
    pattern.compress(w)
    calls = []
    original = compressed.CompressedWeight.linear

    def counted(self: compressed.CompressedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(tuple(x.shape))
        return original(self, x, bias)

    monkeypatch.setattr(compressed.CompressedWeight, "linear", counted)
    x, bias = torch.randn(2, 3, 100, device=backend), torch.randn(24, device=backend)

    def check(taken: bool, w: Tensor, mask: Tensor = mask) -> None:
        calls.clear()
        with torch.no_grad(), sk.backend("auto"):
            out = sk.masked_linear(x, w, pattern, bias)
        assert bool(calls) == taken
        expected = x.double() @ torch.where(mask, w.detach(), 0).double().mT + bias.double()
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-4)

    check(True, w)
    check(False, w.detach().clone())
    with sk.backend("reference"):
        assert compressed.found(x, w.detach(), pattern) is None
    assert compressed.found(x, w, pattern) is None  # w requires a gradient
    with torch.no_grad():
        w[mask] *= 2
    check(False, w)
    pattern.compress(w)
    check(True, w)
    changed = mask.flip(0)
    pattern.update_(changed)
    with torch.no_grad():
        w.copy_(torch.randn(24, 100))
    check(False, w, changed)


def test_compiled(backend: str) -> None:
    torch._dynamo.reset()
    w, mask = weight(20, 70, 0.8, torch.bfloat16)
    form = sk.SparsityPattern(mask.to(backend)).compress(w.to(backend))
    compiled = torch.compile(
        lambda x: form.linear(x * 2).relu(), fullgraph=True, backend="aot_eager"
    )
    for batch in (1, 8, 30):
        x = torch.randn(batch, 70, dtype=torch.bfloat16, device=backend)
        torch.testing.assert_close(compiled(x), form.linear(x * 2).relu())
    torch._dynamo.reset()


def test_masked_linear_leaves_it_where_the_pattern_is_faster(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, mask = weight(64, 192, 0.99, torch.float32)
    w, pattern = w.to(backend), sk.SparsityPattern(mask.to(backend))
    form = pattern.compress(w)
    known = cuda_choice.machine(torch.device(backend))[0]

    def taken(batch: int, cache: float) -> bool:
        rates = known._replace(cache=cache, memory=1e9, launch=1.0)
        monkeypatch.setattr(cuda_choice, "machine", lambda device: (rates, False))
        return compressed.found(torch.zeros(batch, 192, device=backend), w, pattern) is form

    assert taken(256, cache=1.0)
    assert not taken(256, cache=1e9)
    assert taken(1, cache=1.0)
