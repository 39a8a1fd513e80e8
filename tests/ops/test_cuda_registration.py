"""The operators on CUDA kernels under torch.library and torch.compile: emulated, and on a GPU.

What their fake kernels say of tensors on a GPU is asked without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsekern as sk

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")
OPS = torch.ops.sparsekern


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    made = [torch.randn(20, 3), torch.randn(7), torch.randn(4, 6).t()]
    return [x.to(device, dtype) for x in made]


def calls(device: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every operator of these families that has CUDA kernels, with arguments."""
    ws, needs = tensors(device), [True, False, True]
    grad = torch.ones((), device=device)
    state = torch.ones(2, dtype=torch.float64, device=device)
    norms = torch.ones(3, dtype=torch.float64, device=device)
    return [
        (OPS.selection_cuda_threshold, (ws, 0.5, "x[{}]")),
        (OPS.selection_cuda_masks, (ws, 0.5, True, "x[{}]")),
        (OPS.penalties_cuda_hypersparse, (ws, 0.5, "w[{}]")),
        (OPS.penalties_cuda_hypersparse_grad, (grad, ws, state, needs)),
        (OPS.penalties_cuda_layers, (ws, [1.0, 2.0, 0.5], "w[{}]")),
        (OPS.penalties_cuda_layers_grad, (grad, ws, norms, [1.0] * 3, needs)),
        (OPS.penalties_cuda_layers_prox_, (ws, [1.0] * 3, "w[{}]")),
        (OPS.activity_cuda_dead_neurons, (torch.randn(3, 4, 5, 2, device=device), 1)),
    ]


def test_no_operator_is_left_out(backend: str) -> None:
    from torch._C import _dispatch_get_all_op_names

    prefixes = ("selection_cuda_", "penalties_cuda_", "activity_cuda_")
    registered = {name.removeprefix("sparsekern::") for name in _dispatch_get_all_op_names()}
    expected = {name for name in registered if name.startswith(prefixes)}
    assert {operator.default.name().split("::")[1] for operator, _ in calls(backend)} == expected


@pytest.mark.parametrize("index", range(8))
def test_opcheck(index: int, backend: str) -> None:
    operator, arguments = calls(backend)[index]
    torch.library.opcheck(operator.default, arguments, test_utils=UTILITIES)


@pytest.mark.parametrize("index", range(8))
def test_fakes_on_a_gpu_that_is_not_there(index: int) -> None:
    with FakeTensorMode():
        operator, arguments = calls("cuda:0")[index]
        results = operator(*arguments)
    found = [results] if isinstance(results, Tensor) else list(results or [])
    assert all(result.device == torch.device("cuda", 0) for result in found)


@pytest.mark.parametrize("dynamic", [False, True])
def test_selection_compiles(dynamic: bool, backend: str) -> None:
    def pruned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        masks = sk.global_masks([a * 2, b], 0.4)
        return a * masks[0], sk.magnitude_threshold([a, b], 0.4) + 1

    compiled = torch.compile(pruned, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (5, 9):
        a = torch.randn(rows, 3, device=backend, requires_grad=True)
        b = torch.randn(rows * 4, device=backend)
        expected, found = pruned(a, b), compiled(a, b)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
        (gradient,) = torch.autograd.grad(found[0].sum(), a)
        assert torch.equal(gradient, (expected[0] != 0).float())


def test_penalties_compile(backend: str) -> None:
    def total(a: Tensor, b: Tensor) -> Tensor:
        return sk.hypersparse_loss([a * 2, b], 0.5) + sk.layer_sparsity_loss([a, b.square() - 1])

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    made = tensors(backend)[:2]
    results = []
    for function in (total, compiled):
        inputs = [x.clone().requires_grad_() for x in made]
        value = function(*inputs)
        results.append([value.detach(), *torch.autograd.grad(value, inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def shrink(w: Tensor) -> Tensor:
        sk.layer_sparsity_prox_([w], 0.5)
        return w * 2

    expected = shrink(made[0].clone())
    compiled = torch.compile(shrink, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(made[0].clone()), expected)


def test_dead_neurons_compile(backend: str) -> None:
    def rates(x: Tensor) -> Tensor:
        return torch.stack(sk.dead_neuron_rate(x.relu()))

    compiled = torch.compile(rates, fullgraph=True, backend="aot_eager")
    for rows in (4, 7):
        x = torch.randn(rows, 9, device=backend)
        assert torch.equal(compiled(x), rates(x))
