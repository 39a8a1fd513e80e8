"""torch.compile without graph breaks, and autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from ..conftest import compiled_only
from . import oracle

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "masked": lambda p, x, w, b: sk.masked_linear(x, w, p, b),
    "dense": lambda p, x, w, b: sk.masked_linear(x, w, p, b, weight_grad="dense"),
    "mask": lambda p, x, w, b: sk.masked_linear(x, w, p.mask, b),
    "spmm": lambda p, x, w, b: sk.spmm(p, p.gather(w), x.t()).t() + b,
    "sddmm": lambda p, x, w, b: sk.sddmm(w @ x.t(), x, p) * b.sum(),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(compiled: Callable[..., Tensor], plain: Callable[..., Tensor], batch: int) -> None:
    x, weight, mask, bias = oracle.problem(batch, 40, 30, 0.8, torch.float32)
    pattern = sk.SparsityPattern(mask)
    results = []
    for function in (compiled, plain):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
        value = function(pattern, *(t * 1.5 for t in inputs))
        value.sum().backward()
        results.append([value, *(t.grad for t in inputs)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def check_static_shapes(name: str) -> None:
    call = OPERATORS[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)
    check(compiled, call, 8)


# What gathers by a mask has a size that depends on data, which tracing does not follow: in spmm's
# operands, and in the sddmm of the reference.
@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in ("spmm", "sddmm")])
def test_static_shapes(name: str) -> None:
    check_static_shapes(name)


@compiled_only
def test_static_shapes_of_sddmm() -> None:
    check_static_shapes("sddmm")


@pytest.mark.usefixtures("algorithm")
def test_dynamic_batch() -> None:
    call = OPERATORS["masked"]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    check(compiled, call, 8)
    check(compiled, call, 70)


def test_inductor() -> None:
    def together(p: sk.SparsityPattern, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return OPERATORS["masked"](p, x.relu(), w, b).square() + OPERATORS["dense"](p, x, w, b)

    check(torch.compile(together, fullgraph=True), together, 8)


def test_a_changed_pattern_is_seen() -> None:
    x, weight, mask, bias = oracle.problem(8, 40, 30, 0.8, torch.float32)
    pattern = sk.SparsityPattern(mask)
    compiled = torch.compile(OPERATORS["masked"], fullgraph=True, backend="aot_eager")
    for kept in (mask, ~mask):
        pattern.update_(kept)
        expected = sk.masked_linear(x, weight, kept, bias)
        torch.testing.assert_close(compiled(pattern, x, weight, bias), expected)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("weight_grad", ["masked", "dense"])
def test_autocast_is_that_of_linear(weight_grad: str) -> None:
    x, weight, mask, bias = oracle.problem(8, 40, 30, 0.8, torch.float32)
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        out = sk.masked_linear(inputs[0], inputs[1], mask, inputs[2], weight_grad=weight_grad)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    expected = oracle.linear(x, weight, mask, bias, torch.ones(8, 30), dense=weight_grad == "dense")
    for found, wanted in zip([out, *(t.grad for t in inputs)], expected, strict=True):
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error < 1e-2
    assert all(t.grad.dtype == torch.float32 for t in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        wide = sk.masked_linear(x.double(), weight.double(), mask, bias.double())
    assert wide.dtype == torch.float64


def test_errors_are_those_of_eager_mode() -> None:
    compiled = torch.compile(lambda x, w, m: sk.masked_linear(x, w, m), backend="aot_eager")
    with pytest.raises(Exception, match="mask has shape"):
        compiled(torch.randn(2, 4), torch.randn(3, 4), torch.ones(3, 5, dtype=torch.bool))


def test_a_jit_trace_holds_the_computation_and_not_its_result() -> None:
    pattern = sk.SparsityPattern(torch.rand(12, 8) > 0.7)
    weight, x = torch.randn(12, 8), torch.randn(5, 8)
    traced = torch.jit.trace(lambda x, w: sk.masked_linear(x, w, pattern), (x, weight))
    other = torch.randn(5, 8)
    expected = sk.masked_linear(other, 2 * weight, pattern)
    torch.testing.assert_close(traced(other, 2 * weight), expected)
