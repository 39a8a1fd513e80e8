"""Gradients of penalties where they go: added in place, and in memory that was used before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops import memory

from ..conftest import compiled_only

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def layers(dtype: torch.dtype) -> list[Tensor]:
    image = torch.randn(6, 5, 3, 3).contiguous(memory_format=torch.channels_last)
    weights = [torch.randn(40, 7) * 0.1, image, torch.randn(19), torch.zeros(3)]
    return [w.to(dtype).requires_grad_() for w in weights]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("held", ["none", "all", "some"])
def test_it_adds_what_backward_adds(dtype: torch.dtype, held: str) -> None:
    weights = layers(dtype)
    old = [None if held == "none" else torch.randn_like(w) for w in weights]
    if held == "some":
        old[0] = None
        old[1] = torch.randn(6, 5, 3, 3).to(dtype)  # laid out in another way than its weight
    twins = [w.detach().clone().requires_grad_() for w in weights]
    gradients = torch.autograd.grad(2.5 * sk.hypersparse_loss(twins, 0.6), twins)
    expected = [g if o is None else g + o for g, o in zip(gradients, old, strict=True)]
    for w, grad in zip(weights, old, strict=True):
        w.grad = grad
    assert sk.hypersparse_backward_(weights, 0.6, 2.5) is None
    unit = torch.finfo(dtype).eps
    for w, sum_, grad in zip(weights, expected, old, strict=True):
        # In place, the sum is rounded once, not the gradient and then the sum.
        torch.testing.assert_close(w.grad, sum_, rtol=4 * unit, atol=4 * unit)
        assert grad is None or w.grad is grad
        assert w.grad_fn is None


def test_in_place_gradients_tell_autograd(backend: str) -> None:
    w = torch.randn(30, requires_grad=True)
    w.grad = torch.zeros(30)
    version = w.grad._version
    sk.hypersparse_backward_(w, 0.5)
    assert w.grad._version > version
    assert w.grad.any()


def test_frozen_weights_count_and_get_no_gradient() -> None:
    weights = layers(torch.float64)
    weights[0].requires_grad_(False)
    expected = torch.autograd.grad(sk.hypersparse_loss(weights, 0.6), weights[1:])
    sk.hypersparse_backward_(weights, 0.6)
    assert weights[0].grad is None
    for w, e in zip(weights[1:], expected, strict=True):
        torch.testing.assert_close(w.grad, e)
    frozen = torch.randn(5)
    sk.hypersparse_backward_(frozen, 0.6)
    assert frozen.grad is None


@pytest.mark.parametrize("present", [False, True])
def test_a_weight_that_is_listed_twice(present: bool) -> None:
    w = torch.randn(100_000, dtype=torch.float64, requires_grad=True)
    if present:
        w.grad = torch.zeros_like(w)
    (expected,) = torch.autograd.grad(sk.hypersparse_loss([w, w], 0.6), w)
    sk.hypersparse_backward_([w, w], 0.6)
    torch.testing.assert_close(w.grad, expected)


def test_errors_leave_gradients_alone() -> None:
    w = torch.randn(4, requires_grad=True)
    w.grad = torch.ones(4)
    with pytest.raises(ValueError, match="strength must be finite, got inf"):
        sk.hypersparse_backward_(w, 0.5, torch.inf)
    with pytest.raises(ValueError, match=r"weights\[1\] is the result of an operation"):
        sk.hypersparse_backward_([w, 2 * w], 0.5)
    with pytest.raises(ValueError, match=r"weights\[1\] of shape \(2,\) holds"):
        sk.hypersparse_backward_([w, torch.tensor([1.0, torch.nan])], 0.5)
    assert torch.equal(w.grad, torch.ones(4))


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MAPPED_BYTES", 0)


LOSSES: list[Callable[[list[Tensor]], Tensor]] = [
    lambda ws: sk.hypersparse_loss(ws, 0.5),
    sk.layer_sparsity_loss,
]


@compiled_only  # the reference allocates as torch does
@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("loss", LOSSES)
def test_memory_is_taken_up_again(loss: Callable[[list[Tensor]], Tensor]) -> None:
    weights = [torch.randn(30, 5, requires_grad=True), torch.randn(7, requires_grad=True)]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(weights), weights)

    first = gradients()
    address = first[0].data_ptr()
    assert all(g.data_ptr() % 64 == 0 for g in first)
    expected = [g.clone() for g in first]
    part = first[1][2:]
    del first
    second = gradients()
    assert second[0].data_ptr() != address  # part still lies there
    assert torch.equal(part, expected[1][2:])
    del part
    assert gradients()[0].data_ptr() == address
    for g, e in zip(second, expected, strict=True):
        assert torch.equal(g, e)


@compiled_only  # the reference allocates as torch does
@pytest.mark.usefixtures("every_size")
def test_training_steps_use_one_block() -> None:
    w = torch.randn(300, requires_grad=True)
    addresses = set()
    for _ in range(4):
        w.grad = None
        sk.hypersparse_loss(w, 0.5).backward()
        addresses.add(w.grad.data_ptr())
        with torch.no_grad():
            w -= w.grad
    assert len(addresses) == 1


@compiled_only  # the reference allocates as torch does
@pytest.mark.usefixtures("every_size")
def test_idle_memory_dies_with_its_weight_and_leaves_copies_alone() -> None:
    import pickle

    weight = torch.nn.Parameter(torch.randn(1000))
    sk.hypersparse_loss(weight, 0.5).backward()
    held = weight.grad
    weight.grad = None
    del held
    block = weakref.ref(memory._idle[weight])
    assert len(pickle.dumps(weight)) < 8000  # the parameter, and no idle block
    del weight
    gc.collect()
    assert block() is None


@compiled_only  # the reference allocates as torch does
@pytest.mark.usefixtures("every_size")
def test_gradients_outlive_their_weight() -> None:
    weight = torch.randn(1000, requires_grad=True)
    (gradient,) = torch.autograd.grad(sk.hypersparse_loss(weight, 0.5), weight)
    kept = gradient.clone()
    del weight
    gc.collect()
    assert torch.equal(gradient, kept)
