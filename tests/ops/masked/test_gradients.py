"""Gradients against finite differences, and their plumbing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from ..conftest import compiled_only
from . import oracle


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_finite_differences_of_linear(batch: int, sparsity: float) -> None:
    x, weight, mask, bias = oracle.problem(batch, 7, 5, sparsity)
    pattern = sk.SparsityPattern(mask)
    assert torch.autograd.gradcheck(
        lambda a, w, b: sk.masked_linear(a, w, pattern, b), leaves(x, weight, bias)
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 1.0])
def test_finite_differences_of_products(sparsity: float) -> None:
    pattern = sk.SparsityPattern(torch.rand(5, 7) >= sparsity)
    values, b = torch.randn(pattern.nnz).double(), torch.randn(7, 3).double()
    assert torch.autograd.gradcheck(lambda v, r: sk.spmm(pattern, v, r), leaves(values, b))
    a, c = torch.randn(5, 3).double(), torch.randn(3, 7).double()
    assert torch.autograd.gradcheck(lambda p, q: sk.sddmm(p, q, pattern), leaves(a, c))


def test_gathered_values_carry_gradients_to_the_weight() -> None:
    x, weight, mask, _ = oracle.problem(6, 9, 5, 0.6)
    pattern = sk.SparsityPattern(mask)
    (leaf,) = leaves(weight)
    sk.spmm(pattern, pattern.gather(leaf), x.t()).sum().backward()
    (expected,) = leaves(weight)
    sk.masked_linear(x, expected, pattern).sum().backward()
    torch.testing.assert_close(leaf.grad, expected.grad)


CALLS: dict[str, Callable[[sk.SparsityPattern, Tensor, Tensor, Tensor], Tensor]] = {
    "masked": lambda p, x, w, b: sk.masked_linear(x, w, p, b),
    "dense": lambda p, x, w, b: sk.masked_linear(x, w, p, b, weight_grad="dense"),
    "spmm": lambda p, x, w, b: sk.spmm(p, p.gather(w), x.t()),
    "sddmm": lambda p, x, w, b: sk.sddmm(w @ x.t(), x, p),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_double_backward_is_right_or_refused(call: Callable[..., Tensor], backend: str) -> None:
    x, weight, mask, bias = oracle.problem(3, 6, 4, 0.5)
    pattern = sk.SparsityPattern(mask)

    def first_order() -> tuple[list[Tensor], tuple[Tensor, ...]]:
        inputs = leaves(x, weight, bias)
        value = call(pattern, *inputs).square().sum()
        return inputs, torch.autograd.grad(value, inputs[:2], create_graph=True)

    inputs, gradients = first_order()
    if backend == "reference":
        gradients[0].square().sum().backward()
        assert inputs[1].grad is not None
        return
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradients[0].square().sum().backward()


@pytest.mark.parametrize("weight_grad", ["masked", "dense"])
def test_forward_mode_and_vmap(weight_grad: str) -> None:
    x, weight, mask, bias = oracle.problem(3, 6, 4, 0.5)
    tangent = torch.randn_like(weight)

    def of_weight(w: Tensor) -> Tensor:
        return sk.masked_linear(x, w, mask, bias, weight_grad=weight_grad)

    _, derivative = torch.func.jvp(of_weight, (weight,), (tangent,))
    seen = tangent if weight_grad == "dense" else tangent * mask
    torch.testing.assert_close(derivative, x @ seen.T)
    per_sample = torch.vmap(lambda row: sk.masked_linear(row, weight, mask, bias))(x)
    torch.testing.assert_close(per_sample, sk.masked_linear(x, weight, mask, bias))


def test_result_requires_grad_only_where_an_input_does() -> None:
    x, weight, mask, bias = oracle.problem(3, 6, 4, 0.5)
    assert not sk.masked_linear(x, weight, mask, bias).requires_grad
    assert sk.masked_linear(x, weight, mask, bias.requires_grad_()).requires_grad
    with torch.no_grad():
        assert not sk.masked_linear(x, weight, mask, bias).requires_grad
    with torch.inference_mode():
        assert not sk.masked_linear(x, weight, sk.SparsityPattern(mask), bias).requires_grad


@pytest.mark.usefixtures("algorithm")
def test_a_weight_changed_after_forward_gives_no_wrong_gradient() -> None:
    x, weight, mask, _ = oracle.problem(3, 6, 4, 0.5)
    expected = torch.where(mask, weight, 0).sum(0).expand(3, 6)
    x, weight = leaves(x, weight)
    out = sk.masked_linear(x, weight, mask)
    with torch.no_grad():
        weight.mul_(2)
    try:
        out.sum().backward()
    except RuntimeError as error:
        refusal = str(error)
        assert "modified by an inplace operation" in refusal
    else:
        torch.testing.assert_close(x.grad, expected)


@compiled_only
@pytest.mark.usefixtures("algorithm")
def test_a_mask_changed_after_forward_is_refused() -> None:
    x, weight, mask, _ = oracle.problem(3, 6, 4, 0.5)
    x, weight = leaves(x, weight)
    pattern = sk.SparsityPattern(mask)
    out = sk.masked_linear(x, weight, pattern)
    pattern.update_(~mask)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("foreach", [False, True])
def test_training_is_that_of_the_dense_layer(foreach: bool) -> None:
    x, weight, mask, bias = oracle.problem(16, 20, 12, 0.7)
    target = torch.randn(16, 12).double()
    pattern = sk.SparsityPattern(mask)
    ours, plain = leaves(weight, bias), leaves(weight, bias)
    steps = [torch.optim.AdamW(p, lr=0.05, foreach=foreach) for p in (ours, plain)]
    for _ in range(20):
        losses = [
            (sk.masked_linear(x, ours[0], pattern, ours[1]) - target).square().mean(),
            (x @ (plain[0] * mask).T + plain[1] - target).square().mean(),
        ]
        for loss, step in zip(losses, steps, strict=True):
            step.zero_grad()
            loss.backward()
            step.step()
        torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(ours[0], plain[0])
