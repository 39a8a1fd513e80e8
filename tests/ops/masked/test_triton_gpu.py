"""Dense products fused with the mask where only a GPU can tell: real sizes, graphs, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked.triton import choice

from . import oracle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Every tile of the batch, on and off its edges; sizes that 16 divides, and that it does not.
SHAPES = ((1, 4096, 4096), (16, 1000, 3000), (33, 777, 555), (64, 4096, 1024), (300, 2048, 2048))


@pytest.fixture(autouse=True)
def backend() -> Iterator[str]:
    with sk.backend("triton"):
        yield "triton"


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "here", lambda *_, **__: True)


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def layer(
    shape: tuple[int, int, int], dtype: torch.dtype, kind: str = "masked"
) -> tuple[list[Tensor], Callable[[], list[Tensor]]]:
    """x, weight (poisoned under the mask), mask, bias and gradient; and a step on them."""
    x, weight, mask, bias = (t.cuda() for t in oracle.problem(*shape, 0.8, dtype))
    grad = torch.randn(shape[0], shape[2], device="cuda").to(dtype)
    leaves = [t.requires_grad_() for t in (x, oracle.poison(weight.cpu(), mask.cpu()).cuda(), bias)]

    def step() -> list[Tensor]:
        out = sk.masked_linear(leaves[0], leaves[1], mask, leaves[2], weight_grad=kind)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return [x.detach(), weight, mask, bias.detach(), grad], step


def check(found: list[Tensor], given: list[Tensor], bound: float, kind: str = "masked") -> None:
    x, weight, mask, bias, grad = given
    wanted = oracle.linear(x, weight, mask, bias, grad, kind == "dense")
    for actual, expected in zip(found, wanted, strict=True):
        assert (actual.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("kind", ["masked", "dense"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("fused")
def test_values_and_gradients(shape: tuple[int, int, int], dtype: torch.dtype, kind: str) -> None:
    given, step = layer(shape, dtype, kind)
    bound = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]
    found = step()
    check(found, given, bound, kind)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.usefixtures("fused")
def test_precisions_of_float32(shape: tuple[int, int, int], precision: str) -> None:
    given, step = layer(shape, torch.float32)
    check(step(), given, 2e-3 if precision == "medium" else 1e-5)


@pytest.mark.parametrize("batch", [16, 256, 4096])
def test_what_is_chosen_is_right(batch: int) -> None:
    given, step = layer((batch, 1024, 2048), torch.bfloat16)
    check(step(), given, 6e-3)


@pytest.mark.usefixtures("fused")
def test_a_cuda_graph_and_no_waiting() -> None:
    given, step = layer((24, 1024, 512), torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    check(captured, given, 6e-3)


@pytest.mark.usefixtures("fused")
def test_other_streams() -> None:
    _, step = layer((24, 1024, 512), torch.bfloat16)
    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        found = step()
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("fused")
def test_offsets_beyond_32_bits() -> None:
    rows, columns = 70_000, 40_000
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("takes 40 GB")
    x = torch.randn(16, columns, device="cuda", dtype=torch.bfloat16)
    weight = torch.zeros(rows, columns, device="cuda", dtype=torch.bfloat16)
    mask = torch.zeros(rows, columns, device="cuda", dtype=torch.bool)
    weight[-200:] = torch.randn(200, columns, device="cuda") / columns**0.5
    mask[-200:, ::2] = True
    grad = torch.zeros(16, rows, device="cuda", dtype=torch.bfloat16)
    grad[:, -200:] = torch.randn(16, 200, device="cuda")
    x, weight = x.requires_grad_(), weight.requires_grad_()
    out = sk.masked_linear(x, weight, mask)
    found = [out, *torch.autograd.grad(out, (x, weight), grad)]
    tail = (x.detach(), weight.detach()[-200:], mask[-200:], None, grad[:, -200:])
    wanted = oracle.linear(*tail)
    for actual, expected in zip(
        (found[0][:, -200:], found[1], found[2][-200:]), wanted, strict=True
    ):
        assert (actual.double() - expected).norm() <= 6e-3 * expected.norm()
    assert not found[2][:-200].any()


@pytest.mark.usefixtures("fused")
def test_torch_compile() -> None:
    given, _ = layer((24, 1024, 512), torch.float32)
    x, weight, mask, bias, grad = given
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w, b: sk.masked_linear(x.relu(), w, mask, b), fullgraph=True)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = compiled(*leaves)
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    torch._dynamo.reset()
    given[0] = x.relu()
    wanted = oracle.linear(x.relu(), weight, mask, bias, grad)
    wanted[1] = torch.where(x > 0, wanted[1], 0)
    for actual, expected in zip(found, wanted, strict=True):
        assert (actual.double() - expected).norm() <= 1e-5 * expected.norm()
