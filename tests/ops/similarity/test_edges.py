"""Callers' surroundings: default devices, lazy views, transforms, autocast, huge n, outliers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import sparsekern as sk
from sparsekern import dispatch


def _pair(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 7, generator=generator), torch.randn(n, 5, generator=generator)


def test_default_device_does_not_move_the_results() -> None:
    x, y = _pair()
    expected = sk.cka(x, y)
    with torch.device("meta"):
        assert torch.equal(sk.cka(x, y), expected)
        assert sk.gram(x).device.type == "cpu"
        assert sk.cka_sum([[x, y]]).device.type == "cpu"


@pytest.mark.parametrize("n", [8, 20, 70])  # small, Gram matrices, feature space
def test_lazily_negated_features_have_the_gradient_of_their_values(n: int) -> None:
    x, y = _pair(n)
    lazy = torch._neg_view(x).detach().requires_grad_()
    plain = (-x).requires_grad_()
    sk.cka(lazy, y).backward()
    sk.cka(plain, y).backward()
    assert torch.allclose(lazy.grad, plain.grad, rtol=1e-4, atol=1e-7)


def test_forward_mode_and_functorch_agree_with_reverse_mode() -> None:
    x, y = (t.double() for t in _pair())
    direction = torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    sk.cka(leaf, y).backward()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        tangent = forward_ad.unpack_dual(sk.cka(dual, y)).tangent
    assert tangent is not None
    assert torch.allclose(tangent, (leaf.grad * direction).sum(), atol=1e-12)
    gradient = torch.func.grad(lambda z: sk.cka(z, y))(x)
    assert torch.allclose(gradient, leaf.grad, atol=1e-12)
    batch = torch.func.vmap(lambda z: sk.cka(z, y))(torch.stack([x, y @ y.T @ x]))
    assert torch.allclose(batch[0], sk.cka(x, y))


def test_backward_inside_autocast_in_feature_space() -> None:
    x, y = _pair(70)
    inside, outside = (x.clone().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sk.cka(inside, y).backward()
    sk.cka(outside, y).backward()
    # The reference's own products run in bfloat16 where the caller differentiates inside autocast.
    tolerance = 0 if dispatch.requested() == "cpu" else 0.05
    error = torch.linalg.vector_norm(inside.grad - outside.grad)
    assert error <= tolerance * torch.linalg.vector_norm(outside.grad)


def test_many_samples_of_few_features_need_no_gram_matrix() -> None:
    n = 200_000  # one Gram matrix of this size would take 80 GB
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    with sk.backend("cpu"):
        assert sk.cka(x, x).item() == pytest.approx(1, abs=1e-6)
        assert sk.cka(torch.ones(n, 3), x).item() == 0


@pytest.mark.parametrize("n", [40, 41, 300])
def test_median_with_one_outlier_is_exact(n: int) -> None:
    x = _pair(n)[0].double()
    x[0] *= 1e3
    squared = ((x[:, None] - x[None]) ** 2).sum(-1).numpy()
    bandwidth = float(np.sqrt(0.25 * np.median(squared)))
    heuristic, given = sk.gram(x, "rbf"), sk.gram(x, sk.RBF(bandwidth=bandwidth))
    assert torch.allclose(heuristic, given, rtol=0, atol=1e-9)


def test_bandwidth_beyond_the_range_of_floats_gives_no_nan() -> None:
    x, y = _pair()
    x.requires_grad_()
    value = sk.cka(x, y, kernel=sk.RBF(bandwidth=1e-25))
    value.backward()
    assert value.item() == 0
    assert not x.grad.any()


def test_sparse_layouts_are_refused_by_name() -> None:
    x, y = _pair()
    with pytest.raises(TypeError, match="x must be a dense"):
        sk.cka(x.to_sparse(), y)


def test_fake_tensors_pass_through() -> None:
    with FakeTensorMode():
        assert sk.cka(torch.randn(8, 4), torch.randn(8, 4)).shape == ()
