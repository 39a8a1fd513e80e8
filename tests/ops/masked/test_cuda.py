"""Masked products on the CUDA kernels against float64: on a GPU, and emulated everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import cuda_choice, packed_linear

from ..conftest import gpu_only
from . import oracle

# batch, columns, rows: one vector of the batch and less, several, on and off their edges and those
# of a tile (32 float32 values, 64 halves); one and more spans (512) and bands (32) of the mask.
SHAPES = ((1, 5, 3), (3, 40, 33), (17, 520, 16), (70, 33, 70))


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


@pytest.fixture(params=["unstructured", "dense"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once per algorithm, whatever would be chosen."""
    monkeypatch.setattr(cuda_choice, "here", lambda *_: request.param)
    return str(request.param)


@pytest.fixture
def unstructured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_choice, "here", lambda *_: "unstructured")


def leaves_on(device: str, *tensors: Tensor) -> list[Tensor]:
    """The tensors there, with gradients of their own."""
    return [t.detach().to(device).requires_grad_() for t in tensors]


def check(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    device: str,
    pattern: sk.SparsityPattern | None = None,
    *,
    dense: bool = False,
) -> None:
    """Result and gradients, with what is not finite wherever the mask is False."""
    x, weight, mask, bias = tensors
    grad = torch.randn(x.shape[0], weight.shape[0]).to(x.dtype)
    expected = oracle.linear(x, weight, mask, bias, grad, dense)
    leaves = leaves_on(device, x, oracle.poison(weight, mask), bias)
    pattern = sk.SparsityPattern(mask.to(device)) if pattern is None else pattern
    out = sk.masked_linear(
        leaves[0], leaves[1], pattern, leaves[2], weight_grad="dense" if dense else "masked"
    )
    out.backward(grad.to(device))
    found = [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    assert all(tensor.device.type == device for tensor in found)
    assert out.is_contiguous()
    oracle.assert_close([tensor.cpu() for tensor in found], expected, x.dtype)
    with torch.no_grad():
        again = sk.masked_linear(leaves[0], leaves[1], pattern, leaves[2])
    assert torch.equal(again, out)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.usefixtures("algorithm")
def test_values_and_gradients(
    dtype: torch.dtype, shape: tuple[int, int, int], backend: str
) -> None:
    for sparsity in oracle.SPARSITIES:
        check(oracle.problem(*shape, sparsity, dtype), backend)


@pytest.mark.usefixtures("algorithm")
def test_the_dense_gradient(backend: str) -> None:
    check(oracle.problem(9, 30, 20, 0.9, torch.float32), backend, dense=True)


def skewed(rows: int, columns: int) -> Tensor:
    """Rows and columns of every length: full ones that a block shares, and empty ones."""
    mask = torch.rand(rows, columns) >= torch.linspace(0.3, 1, rows)[:, None]
    mask[rows // 2], mask[:, columns // 2] = True, True
    mask[1::7], mask[:, 2::5] = False, False
    mask[3] = torch.arange(columns) % 512 != 0
    mask[4], mask[:, 4] = True, True
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [2, 37])
@pytest.mark.usefixtures("unstructured")
def test_skewed_rows_and_columns(dtype: torch.dtype, batch: int, backend: str) -> None:
    for rows, columns in ((40, 700), (600, 45)):
        x, weight, _, bias = oracle.problem(batch, columns, rows, 0, dtype)
        check((x, weight, skewed(rows, columns), bias), backend)


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.usefixtures("algorithm")
def test_empty_sizes(shape: tuple[int, int, int], backend: str) -> None:
    check(oracle.problem(*shape, 0.5, torch.float32), backend)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.usefixtures("unstructured")
def test_more_entries_than_there_is_room_for(dtype: torch.dtype, backend: str) -> None:
    x, weight, _, bias = oracle.problem(35, 90, 60, 0, dtype)
    pattern = sk.SparsityPattern(torch.zeros(60, 90, dtype=torch.bool, device=backend))
    room = pattern.tensors[2].shape[0]
    mask = skewed(60, 90)
    assert int(mask.sum()) > room
    pattern.update_(mask.to(backend))
    check((x, weight, mask, bias), backend, pattern)
    assert pattern.tensors[2].shape[0] == room
    assert pattern.nnz == int(mask.sum())
    assert pattern.tensors[2].shape[0] >= pattern.nnz
    check((x, weight, mask, bias), backend, pattern)


@pytest.mark.usefixtures("unstructured")
def test_layouts(backend: str) -> None:
    x, weight, mask, bias = oracle.problem(16, 24, 20, 0.7, torch.float32)
    many = torch.randn(3, 16, 25)
    for batch in (
        x.t().contiguous().t(),
        many[1, :, 1:],
        x[:1].expand(16, 24),
        many[0, :, :24].neg(),
    ):
        check((batch, weight, mask, bias), backend)
    odd = torch.randn(24, 15)
    check((odd.t(), weight, mask, bias), backend)
    wide = torch.randn(20, 30)
    for strided in (wide[:, 3:27], torch.randn(24, 20).t()):
        check((x, strided, mask, bias), backend)


@pytest.mark.usefixtures("algorithm")
def test_autocast(backend: str) -> None:
    x, weight, mask, bias = oracle.problem(12, 30, 20, 0.8, torch.float32)
    leaves = leaves_on(backend, x, oracle.poison(weight, mask), bias)
    with torch.autocast(backend, dtype=torch.bfloat16):
        out = sk.masked_linear(leaves[0], leaves[1], mask.to(backend), leaves[2])
    assert out.dtype == torch.bfloat16
    grad = torch.randn(12, 20).bfloat16()
    out.backward(grad.to(backend))
    expected = oracle.linear(x.bfloat16(), weight, mask, bias, grad)
    oracle.assert_close([out.detach().cpu()], expected[:1], torch.bfloat16)
    for leaf, wanted in zip(leaves, expected[1:], strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        error = (leaf.grad.cpu().double() - wanted).abs().max()
        assert error <= 0.02 * wanted.abs().max()


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_packed_layers(dtype: torch.dtype, backend: str) -> None:
    x, weight, mask, bias = oracle.problem(9, 60, 40, 0.8, dtype)
    grad = torch.randn(9, 40).to(dtype)
    expected = oracle.linear(x, weight, mask, bias, grad)
    expected[2] = expected[2][mask]
    leaves = leaves_on(backend, x, weight[mask], bias)
    pattern = sk.SparsityPattern(mask.to(backend))
    out = packed_linear(leaves[0], leaves[1], pattern, leaves[2])
    out.backward(grad.to(backend))
    found = [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    oracle.assert_close([t.cpu() for t in found], expected, dtype, long=True)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 8, 35])
def test_sparse_products(d: int, dtype: torch.dtype, backend: str) -> None:
    mask = skewed(40, 60)
    pattern = sk.SparsityPattern(mask.to(backend))
    values = torch.randn(pattern.nnz).to(dtype)
    b, a = torch.randn(60, d).to(dtype), torch.randn(40, d).to(dtype)
    matrix = torch.zeros(40, 60, dtype=torch.float64).masked_scatter(mask, values.double())
    for right in (b, b.t().contiguous().t()):
        leaves = leaves_on(backend, values, right)
        product = sk.spmm(pattern, *leaves)
        product.backward(a.to(backend))
        found = [product.detach(), leaves[0].grad, leaves[1].grad]
        expected = [
            matrix @ b.double(),
            (a.double() @ b.double().t())[mask],
            matrix.t() @ a.double(),
        ]
        oracle.assert_close([t.cpu() for t in found if t is not None], expected, dtype)
    leaves = leaves_on(backend, a, b.t())
    sampled = sk.sddmm(*leaves, pattern)
    sampled.backward(values.to(backend))
    found = [sampled.detach(), leaves[0].grad, leaves[1].grad]
    expected = [expected[1], matrix @ b.double(), a.double().t() @ matrix]
    oracle.assert_close([t.cpu() for t in found if t is not None], expected, dtype)


@pytest.mark.usefixtures("unstructured")
def test_what_is_not_finite_stays_where_it_belongs(backend: str) -> None:
    x, weight, mask, bias = oracle.problem(6, 50, 30, 0.8, torch.float32)
    mask[:, 7] = False
    x[:, 7] = torch.nan  # a column that nothing keeps
    x[2] = torch.inf
    out = sk.masked_linear(
        x.to(backend), weight.to(backend), mask.to(backend), bias.to(backend)
    ).cpu()
    assert out[[0, 1, 3, 4, 5]].isfinite().all()
    assert not out[2].isfinite().any()


@gpu_only
def test_masks_that_change_without_waiting_for_the_device() -> None:
    x, weight = torch.randn(256, 1024, device="cuda"), torch.randn(2048, 1024, device="cuda")
    masks = [torch.rand(2048, 1024, device="cuda") >= 0.95 for _ in range(3)]
    pattern = sk.SparsityPattern(masks[0])
    sk.masked_linear(x, weight, pattern)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    chosen = torch.empty_like(masks[0])
    with torch.cuda.graph(graph):
        pattern.update_(chosen)
        captured = sk.masked_linear(x, weight, pattern)
    for mask in masks:
        expected = x @ torch.where(mask, weight, 0).t()
        torch.cuda.set_sync_debug_mode("error")
        try:
            pattern.update_(mask)
            out = sk.masked_linear(x, weight, pattern)
            chosen.copy_(mask)
            graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(captured, expected, rtol=1e-3, atol=1e-3)
