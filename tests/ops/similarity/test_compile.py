"""torch.compile without graph breaks, and autocast.

Tracing costs seconds a piece: aot_eager covers tracing, fake kernels and autograd of each
operator; inductor and dynamic shapes are tried once over all of them, not on the reference, which
is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from ..conftest import compiled_only
from . import oracle

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "cka": lambda x, y, z: sk.cka(x, y, kernel="rbf"),
    "hsic": lambda x, y, z: sk.hsic(x, z, kernel=sk.Polynomial(2, 0.5), estimator="biased"),
    "hsic_matrix": lambda x, y, z: sk.hsic_matrix([x, y], [z]),
    "cka_matrix": lambda x, y, z: sk.cka_matrix([x, y, z]).square(),
    "cka_sum": lambda x, y, z: sk.cka_sum([[x, y], [z]]) + sk.cka_sum([[x, z]], reduction="mean"),
    "gram": lambda x, y, z: sk.gram(x * 2, "cosine", center="u"),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(compiled: Callable[..., Tensor], plain: Callable[..., Tensor], xs: list[Tensor]) -> None:
    results = []
    for function in (compiled, plain):
        inputs = oracle.leaves(xs)
        value = function(*[x * 1.5 for x in inputs])
        value.sum().backward()
        results.append([value, *(x.grad for x in inputs)])
    for actual, expected in zip(*results, strict=True):
        if expected is None:
            assert actual is None or not actual.any()
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("call", OPERATORS.values(), ids=OPERATORS)
def test_static_shapes(call: Callable[..., Tensor]) -> None:
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)
    check(compiled, call, oracle.layers(8, (5, 33, 4)))


@compiled_only
def test_dynamic_shapes() -> None:
    def together(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.stack([call(x, y, z).sum() for call in OPERATORS.values()])

    compiled = torch.compile(together, fullgraph=True, backend="aot_eager", dynamic=True)
    check(compiled, together, oracle.layers(8, (5, 33, 4)))
    with torch.compiler.set_stance("fail_on_recompile"):
        check(compiled, together, oracle.layers(9, (6, 30, 5)))
    check(compiled, together, oracle.layers(40, (6, 70, 9)))  # may be another choice of algorithm


@compiled_only
def test_inductor() -> None:
    def together(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        loss = sk.cka_sum([[x.relu(), y], [z]]) + sk.cka(x, y) + sk.hsic_matrix([x, z]).sum()
        return loss + sk.gram(y, center="double").square().mean()

    compiled = torch.compile(together, fullgraph=True)
    check(compiled, together, oracle.layers(8, (5, 33, 4)))


def test_errors_are_those_of_eager_mode() -> None:
    compiled = torch.compile(lambda x, y: sk.cka(x, y), backend="aot_eager")
    with pytest.raises(Exception, match="y has 9 samples and x has 8"):
        compiled(torch.randn(8, 5), torch.randn(9, 5))


@pytest.mark.parametrize("kernel", oracle.KERNELS.values(), ids=oracle.KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_no_bit(kernel: sk.Linear, dtype: torch.dtype) -> None:
    xs = [x / 4 for x in oracle.layers(8, (5, 60, 33), dtype)]
    for call in (
        lambda a: sk.cka_matrix(a, kernel=kernel),
        lambda a: sk.hsic_matrix(a[:1], a[1:], kernel=kernel),
        lambda a: sk.cka_sum([a], kernel=kernel),
        lambda a: sk.cka(a[0], a[1], kernel=kernel, estimator="biased"),
        lambda a: sk.gram(a[0], kernel, center="u"),
    ):
        plain, mixed = oracle.leaves(xs), oracle.leaves(xs)
        expected = call(plain)
        with torch.autocast("cpu", torch.bfloat16):
            actual = call(mixed)
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
        upstream = torch.randn_like(expected)
        expected.backward(upstream)
        actual.backward(upstream)
        for p, m in zip(plain, mixed, strict=True):
            assert (p.grad is None and m.grad is None) or torch.equal(p.grad, m.grad)


def test_features_made_under_autocast() -> None:
    linear = torch.nn.Linear(12, 20)
    x = torch.randn(8, 12)
    with torch.autocast("cpu", torch.bfloat16):
        features = linear(x)
        value = sk.cka_sum([[features, features.relu()]])
    assert features.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    value.backward()
    assert linear.weight.grad.dtype == torch.float32
    assert linear.weight.grad.any()


@compiled_only
def test_a_layer_that_is_listed_twice() -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sk.cka_sum([[x, y], [y, x]]) + sk.cka_matrix([x, y, x], [y]).sum()

    xs = [torch.randn(12, 5, requires_grad=True), torch.randn(12, 7, requires_grad=True)]
    check(torch.compile(loss, fullgraph=True, backend="aot_eager"), loss, xs)
