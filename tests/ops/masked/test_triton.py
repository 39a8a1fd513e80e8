"""Dense products fused with the mask, against float64: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.nn import measurement
from sparsekern.ops.masked.triton import choice, plan
from sparsekern.ops.tiled import device
from sparsekern.ops.tiled.configurations import configuration

from .. import interpreter
from . import oracle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# batch, columns, rows: the least; tiles of 128 features and 16, 32 and 128 of the batch, just
# beyond; a tile and a batch of two; a depth of several steps.
SHAPES = ((1, 1, 1), (1, 5, 3), (17, 300, 130), (31, 129, 16), (130, 33, 257))
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The Triton back end; on a GPU too it takes the fused kernels wherever they can be."""
    asked = choice.here

    def here(part: str, x: Tensor, weight: Tensor, **rest: bool) -> bool:
        able = x.dtype in DTYPES and weight.dtype in DTYPES and x.numel() and weight.numel()
        return bool(able) if DEVICE == "cuda" else asked(part, x, weight, **rest)

    monkeypatch.setattr(choice, "here", here)
    with sk.backend("triton"), interpreter.patched_once():
        yield "triton"


@pytest.fixture(params=[1, 1000], ids=["whole", "split"])
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One multiprocessor, for which no tile's depth is split, or enough to split it."""
    monkeypatch.setattr(device, "processors", lambda _: request.param)
    return int(request.param)


def check(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor], *, dense: bool = False, bias: bool = True
) -> list[Tensor]:
    """Result and gradients, with what is not finite wherever the mask is False."""
    x, weight, mask, shift = tensors
    grad = torch.randn(x.shape[0], weight.shape[0]).to(x.dtype)
    wanted = oracle.linear(x, weight, mask, shift if bias else None, grad, dense)
    inputs = (x, oracle.poison(weight, mask), *([shift] if bias else []))
    leaves = [t.detach().to(DEVICE).requires_grad_() for t in inputs]
    kind = "dense" if dense else "masked"
    rest = leaves[2:] or [None]
    out = sk.masked_linear(leaves[0], leaves[1], mask.to(DEVICE), *rest, weight_grad=kind)
    out.backward(grad.to(DEVICE))
    found = [out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)]
    oracle.assert_close(found, wanted, x.dtype)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("processors")
def test_values_and_gradients(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    check(oracle.problem(*shape, 0.6, dtype), bias=shape != SHAPES[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_over_a_long_batch_is_shared(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "processors", lambda _: 2)
    tensors = oracle.problem(600, 9, 20, 0.5, dtype)
    product = choice.sizes_of("weight", tensors[0], tensors[1])
    assert plan.plan(product, "cpu", 2).splits > 1
    check(tensors)


@pytest.mark.usefixtures("processors")
def test_the_straight_through_gradient_is_whole() -> None:
    check(oracle.problem(20, 40, 30, 0.9, torch.float32), dense=True)


def test_masks_that_keep_everything_and_nothing() -> None:
    for sparsity in (0.0, 1.0):
        found = check(oracle.problem(5, 20, 9, sparsity, torch.float32))
        if sparsity == 1:
            assert not found[1].any()
            assert not found[2].any()


def test_layouts() -> None:
    x, weight, mask, bias = oracle.problem(16, 24, 20, 0.7, torch.float32)
    many = torch.randn(3, 16, 25)
    for batch in (
        x.t().contiguous().t(),
        many[1, :, 1:],
        x[:1].expand(16, 24),
        many[0, :, :24].neg(),
    ):
        check((batch, weight, mask, bias))
    wide = torch.randn(20, 30)
    for strided in (wide[:, 3:27], torch.randn(24, 20).t()):
        check((x, strided, mask, bias))
    check((x, weight, mask.t().contiguous().t(), bias))


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 5, 0)], ids=str)
def test_empty_sizes(shape: tuple[int, int, int]) -> None:
    check(oracle.problem(*shape, 0.5, torch.float32))


def test_float64_is_torchs() -> None:
    check(oracle.problem(7, 20, 9, 0.5, torch.float64))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.usefixtures("processors")
def test_autocast(dense: bool) -> None:
    """A float32 weight is read as it is, and its gradient is rounded to float32 only."""
    x, weight, mask, bias = oracle.problem(40, 300, 20, 0.8, torch.float32)
    leaves = [t.to(DEVICE).requires_grad_() for t in (x, oracle.poison(weight, mask), bias)]
    pattern = sk.SparsityPattern(mask.to(DEVICE))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        kind = "dense" if dense else "masked"
        out = sk.masked_linear(leaves[0], leaves[1], pattern, leaves[2], weight_grad=kind)
    assert out.dtype == torch.bfloat16
    grad = torch.randn(40, 20).bfloat16()
    out.backward(grad.to(DEVICE))
    rounded = x.bfloat16(), weight.bfloat16()
    wanted = oracle.linear(*rounded, mask, bias, grad, dense)
    oracle.assert_close([out.detach().cpu()], wanted[:1], torch.bfloat16)
    assert leaves[1].grad is not None
    assert leaves[1].grad.dtype == torch.float32
    oracle.assert_close([leaves[1].grad.cpu()], wanted[2:3], torch.float32)


def test_the_same_bits_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "processors", lambda _: 1000)
    x, weight, mask, bias = oracle.problem(33, 600, 40, 0.5, torch.float32)
    first, second = (
        sk.masked_linear(x.to(DEVICE), weight.to(DEVICE), mask.to(DEVICE), bias.to(DEVICE))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_operators_pass_opcheck() -> None:
    dtype = torch.bfloat16
    x, weight, mask, bias = (t.to(DEVICE) for t in oracle.problem(6, 20, 10, 0.7, dtype))
    operators = torch.ops.sparsekern
    for shift in (bias, None):
        forward = operators.masked_triton_linear.default
        torch.library.opcheck(forward, (x, weight, shift, mask), test_utils=UTILITIES)
    grad = torch.randn(6, 10, device=DEVICE).to(dtype)
    for needs in ([True, True, True], [False, True, False], [True, False, True]):
        for straight_through in (False, True):
            rest = (grad, x, weight, mask, needs, straight_through)
            backward = operators.masked_triton_linear_grad.default
            torch.library.opcheck(backward, rest, test_utils=UTILITIES)


def test_torch_compile() -> None:
    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return sk.masked_linear(x.relu(), weight, pattern, bias).square().mean()

    x, weight, mask, bias = (t.to(DEVICE) for t in oracle.problem(8, 40, 30, 0.8, torch.float32))
    pattern = sk.SparsityPattern(mask)
    torch._dynamo.reset()
    results = []
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        value = function(*leaves)
        value.backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    torch._dynamo.reset()
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_of_gradients_are_refused() -> None:
    x, weight, mask, _ = (t.to(DEVICE) for t in oracle.problem(4, 6, 5, 0.5, torch.float32))
    leaf = x.requires_grad_()
    (grad,) = torch.autograd.grad(
        sk.masked_linear(leaf, weight, mask).sin().sum(), leaf, create_graph=True
    )
    with pytest.raises(RuntimeError, match="masked_triton operators cannot be differentiated"):
        grad.sum().backward()


def test_a_layer_says_what_computes_it() -> None:
    layer = sk.nn.MaskedLinear(6, 5, mask=torch.ones(5, 6, dtype=torch.bool)).to(DEVICE)
    assert measurement.kernels(layer, torch.randn(3, 6, device=DEVICE)) == ("dense",) * 3


@pytest.mark.parametrize("sizes", [(1, 512, 512), (300, 200, 130), (16, 4096, 130)], ids=str)
def test_launches_are_those_of_the_plan(
    sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsekern.ops.masked.triton import calls

    made: list[tuple[str, tuple[int, ...]]] = []
    monkeypatch.setattr(
        calls, "launch", lambda kernel, grid, *_, **__: made.append((kernel.__name__, grid))
    )
    x, weight, mask, bias = (t.to(DEVICE) for t in oracle.problem(*sizes, 0.5, torch.float32))
    grad = torch.empty(sizes[0], sizes[2], device=DEVICE)
    kind, count = device.device_class(x.device), device.processors(x.device)
    for part, of, call in (
        ("forward", x, lambda: calls.forward(x, weight, bias, mask)),
        ("input", grad, lambda: calls.input_grad(grad, weight, mask)),
        ("weight", x, lambda: calls.weight_grad(grad, x, mask, torch.float32)),
    ):
        made.clear()
        call()
        product = choice.sizes_of(part, of, weight, bias=part == "forward")
        add = configuration(kind, plan.ADD, "any", 0)
        wanted = plan.launches(product, plan.plan(product, kind, count), add)
        assert made == [(launch.kernel, launch.grid) for launch in wanted]
