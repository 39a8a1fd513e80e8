"""Large gradients in the memory of earlier ones: taken up when free, not while it is held."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import sparsekern as sk
from sparsekern.ops.masked import memory

from ..conftest import compiled_only

pytestmark = compiled_only  # the reference allocates as torch does


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LEAST_BYTES", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_memory_is_taken_up_again(dtype: torch.dtype) -> None:
    owner = torch.zeros(1)
    first = memory.empty((30, 20), dtype, owner)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((30, 20), dtype, True)
    assert first._base is None
    address = first.data_ptr()
    assert address % 64 == 0
    second = memory.empty((30, 20), dtype, owner)
    assert second.data_ptr() != address
    part = first[3:]
    del first
    assert memory.empty((30, 20), dtype, owner).data_ptr() != address  # part still lies there
    del part
    again = memory.empty((600,), dtype, owner)
    assert again.data_ptr() == address
    assert memory.empty((31, 20), dtype, owner).data_ptr() not in (address, second.data_ptr())


def test_idle_memory_is_bounded_and_dies_with_its_owner() -> None:
    owner = torch.zeros(1)
    held = [memory.empty((100,), torch.float32, owner) for _ in range(5)]
    held.clear()
    idle = getattr(owner, memory._ATTRIBUTE)
    assert len(idle[400]) == memory._MOST_IDLE
    last = memory.empty((100,), torch.float32, owner)
    block = weakref.ref(idle)
    del owner, idle
    gc.collect()
    assert block() is None
    last.fill_(1)  # outlives its owner
    assert last.sum() == 100


def test_no_gradient_is_overwritten_while_it_is_held() -> None:
    mask = torch.rand(40, 50) > 0.8
    pattern = sk.SparsityPattern(mask)
    weight = torch.randn(40, 50, requires_grad=True)
    held, expected = [], []
    for step in range(4):
        x = torch.randn(6, 50)
        weight.grad = None
        sk.masked_linear(x, weight, pattern).sum().backward()
        held.append(weight.grad)
        expected.append(x.sum(0).expand(40, 50) * mask)
        if step == 1:
            held[0], expected[0] = held[1], expected[1]  # one of them is free again
    for gradient, wanted in zip(held, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("weight_grad", ["masked", "dense"])
def test_what_an_optimizer_wrote_into_a_gradient_is_gone(weight_grad: str) -> None:
    mask = torch.rand(40, 50) > 0.8
    pattern = sk.SparsityPattern(mask)
    weight = torch.randn(40, 50, requires_grad=True)
    x = torch.randn(6, 50)
    for _ in range(3):
        weight.grad = None
        sk.masked_linear(x, weight, pattern, weight_grad=weight_grad).sum().backward()
        expected = x.sum(0).expand(40, 50)
        torch.testing.assert_close(
            weight.grad, expected * mask if weight_grad == "masked" else expected
        )
        weight.grad.data.fill_(float("nan"))  # leaves the version counter as it was


def test_gradients_accumulate() -> None:
    pattern = sk.SparsityPattern(torch.rand(40, 50) > 0.8)
    weight = torch.randn(40, 50, requires_grad=True)
    x = torch.randn(6, 50)
    for _ in range(3):
        sk.masked_linear(x, weight, pattern).sum().backward()
    torch.testing.assert_close(weight.grad, 3 * x.sum(0).expand(40, 50) * pattern.mask)
