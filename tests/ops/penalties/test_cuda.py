"""Penalties on the CUDA kernels against float64: on a GPU, and emulated everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sparsekern as sk

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STRENGTHS = [0.5, 2.0, 0.25, 1.0]


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


def layers(dtype: torch.dtype, device: str) -> list[Tensor]:
    """More than a chunk, a few, one without a negative, one in another order."""
    weights = [
        torch.randn(130, 70) * 0.1,
        torch.randn(11) * 2,
        torch.rand(6, 5) + 0.1,
        torch.randn(3, 20, 3, 3).contiguous(memory_format=torch.channels_last),
    ]
    weights[0][0, :9] = 0
    return [w.to(device, dtype).requires_grad_() for w in weights]


def compare(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == dtype
        assert f.shape == w.shape
        error = (f.double() - w).abs().max()
        assert error <= 6 * torch.finfo(dtype).eps * w.abs().max()


def in_double(weights: list[Tensor]) -> list[Tensor]:
    return [w.detach().double().cpu().requires_grad_() for w in weights]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.98, 1.0])
def test_hypersparse(dtype: torch.dtype, sparsity: float, backend: str) -> None:
    weights = layers(dtype, backend)
    loss = sk.hypersparse_loss(weights, sparsity)
    assert loss.device.type == backend
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == 0
    found = torch.autograd.grad(3 * loss, weights)
    flat = torch.cat([w.detach().double().cpu().flatten() for w in weights])
    size = flat.abs()
    threshold = size.sort().values[min(math.floor(sparsity * len(flat)), len(flat) - 1)]
    if threshold == 0:
        assert not any(gradient.any() for gradient in found)
        return
    s = math.atanh(1 / math.sqrt(3)) / threshold
    factor = 3 * s * size.sum() / torch.tanh(s * size).sum()
    wanted = [w.sign() * factor / torch.cosh(s * w.abs()) ** 2 for w in in_double(weights)]
    compare([f.cpu() for f in found], [w.detach() for w in wanted], dtype)


def test_hypersparse_at_a_threshold_of_zero(backend: str) -> None:
    weights = [torch.zeros(5000, device=backend), torch.ones(10, device=backend)]
    leaves = [w.requires_grad_() for w in weights]
    gradients = torch.autograd.grad(sk.hypersparse_loss(leaves, 0.5), leaves)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_sparsity(dtype: torch.dtype, backend: str) -> None:
    weights = layers(dtype, backend)
    loss = sk.layer_sparsity_loss(weights, STRENGTHS)
    found = torch.autograd.grad(loss, weights)
    leaves = in_double(weights)
    with sk.backend("reference"):
        expected = sk.layer_sparsity_loss(leaves, STRENGTHS)
        wanted = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-6, atol=0)
    compare([f.cpu() for f in found], list(wanted), dtype)


def test_more_layers_than_a_block_has_threads(backend: str) -> None:
    weights = [torch.randn(1 + i % 5, device=backend) for i in range(600)]
    strengths = [1 + i % 3 for i in range(600)]
    loss = sk.layer_sparsity_loss(weights, strengths)
    norms = [w.double().clamp(max=0).norm().cpu() for w in weights]
    expected = sum(strength * norm for strength, norm in zip(strengths, norms, strict=True))
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-6, atol=0)
    assert torch.equal(sk.layer_sparsity_loss(weights, strengths), loss)


@pytest.mark.parametrize("exponent", [-200, 0, 200])
def test_norms_whose_squares_leave_the_range(exponent: int, backend: str) -> None:
    w = torch.randn(9000, dtype=torch.float64) * 10.0**exponent
    w[:2048] *= 1e-30  # a chunk of another scale, and one without a negative
    w[2048:4096] = w[2048:4096].abs()
    norm = sk.layer_sparsity_loss(w.to(backend))
    scaled = w.clamp(max=0) / 10.0**exponent
    torch.testing.assert_close(norm.cpu() / 10.0**exponent, scaled.norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_sparsity_prox(dtype: torch.dtype, backend: str) -> None:
    weights = [w.detach() for w in layers(dtype, backend)]
    steps = [0.5, 1e9, 1.0, 0.1]
    expected = [w.detach() for w in in_double(weights)]
    with sk.backend("reference"):
        sk.ops.penalties.layer_sparsity_prox_(expected, steps)
    versions = [w._version for w in weights]
    sk.ops.penalties.layer_sparsity_prox_(weights, steps)
    assert all(w._version > v for w, v in zip(weights, versions, strict=True))
    compare([w.cpu() for w in weights], expected, dtype)
    assert (weights[1] >= 0).all()


def test_gradients_that_are_not_needed(backend: str) -> None:
    weights = layers(torch.float32, backend)
    weights[1] = weights[1].detach()
    needed = [weights[0], weights[2], weights[3]]
    for loss in (sk.hypersparse_loss(weights, 0.6), sk.layer_sparsity_loss(weights, STRENGTHS)):
        gradients = torch.autograd.grad(loss, needed)
        assert [g.shape for g in gradients] == [w.shape for w in needed]


def test_hypersparse_gradient_added(backend: str) -> None:
    weights = layers(torch.float32, backend)
    weights[1].requires_grad_(False)
    weights[2].grad = torch.ones_like(weights[2])
    needed = [weights[0], weights[2], weights[3]]
    wanted = torch.autograd.grad(2.5 * sk.hypersparse_loss(weights, 0.6), needed)
    sk.hypersparse_backward_(weights, 0.6, 2.5)
    assert weights[1].grad is None
    for w, gradient in zip(needed, wanted, strict=True):
        torch.testing.assert_close(w.grad, gradient + (w is weights[2]))
