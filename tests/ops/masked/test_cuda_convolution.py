"""Masked convolutions on the CUDA kernels: on a GPU, and emulated everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import convolution, cuda, cuda_choice

from . import oracle


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of x of the products that the kernels are asked for."""
    asked: list[tuple[int, ...]] = []
    original = cuda.masked_linear

    def noted(x: Tensor, *rest: object) -> Tensor:
        asked.append(tuple(x.shape))
        return original(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda, "masked_linear", noted)
    return asked


def check(
    x: Tensor, weight: Tensor, device: str, dense: bool = False, **geometry: int
) -> sk.SparsityPattern:
    """Result and gradients against float64, with what is not finite where the mask is False."""
    mask, bias = torch.rand(weight.shape) > 0.7, torch.randn(weight.shape[0], dtype=x.dtype)
    wide = [t.double().requires_grad_() for t in (x, torch.where(mask, weight, 0), bias)]
    out = F.conv2d(*wide, **geometry)
    grad = torch.randn(out.shape).to(x.dtype)
    wanted = torch.autograd.grad(out, wide, grad.double())
    leaves = [t.to(device).requires_grad_() for t in (x, oracle.poison(weight, mask), bias)]
    pattern = sk.SparsityPattern(mask.to(device))
    kind = "dense" if dense else "masked"
    found = sk.masked_conv2d(leaves[0], leaves[1], pattern, leaves[2], weight_grad=kind, **geometry)
    gradients = torch.autograd.grad(found, leaves, grad.to(device))
    of_weight = wanted[1] if dense else torch.where(mask, wanted[1], 0)
    expected = [out.detach(), wanted[0], of_weight, wanted[2]]
    oracle.assert_close([t.detach().cpu() for t in (found, *gradients)], expected, x.dtype)
    assert found.stride() == F.conv2d(x, weight, bias, **geometry).stride()
    return pattern


@pytest.mark.parametrize("gradients", ["unstructured", "dense"])
@pytest.mark.parametrize("dense", [False, True])
def test_pointwise_goes_by_kept_weights(
    dense: bool,
    gradients: str,
    backend: str,
    products: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chosen(part: str, *_: object) -> str:
        return "unstructured" if part == "forward" else gradients

    monkeypatch.setattr(cuda_choice, "here", chosen)
    x = torch.randn(3, 20, 5, 4).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(9, 20, 1, 1)
    pattern = check(x, weight, backend, dense)
    assert products == [(60, 20)]
    found = convolution.algorithms(x.to(backend), weight.to(backend), pattern)
    assert found == ("unstructured", gradients, gradients)
    single = sk.masked_conv2d(x[0].to(backend), weight.to(backend), pattern)
    assert single.shape == (9, 5, 4)


@pytest.mark.parametrize("choice", ["unstructured", "dense"])
def test_the_rest_is_torchs(
    choice: str,
    backend: str,
    products: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_choice, "here", lambda *_: choice)
    x, pointwise = torch.randn(2, 6, 5, 4), torch.randn(8, 6, 1, 1)
    check(x, pointwise, backend)  # channels are not adjacent
    check(x, pointwise, backend, stride=2)
    last = x.contiguous(memory_format=torch.channels_last)
    check(last, torch.randn(8, 6, 3, 3), backend, padding=1)
    check(last, torch.randn(8, 3, 1, 1), backend, groups=2)
    if choice == "dense":
        pattern = check(last, pointwise, backend)
        found = convolution.algorithms(last.to(backend), pointwise.to(backend), pattern)
        assert found == ("reference",) * 3
    assert not products
