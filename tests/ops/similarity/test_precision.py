"""float32 and 16-bit behaviour where the obvious formulation loses it: offsets and scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle
from .oracle import ESTIMATORS


def np_cka(xs: list[Tensor], kernel: sk.Linear, estimator: str) -> np.ndarray:
    """From features centred at float64, which all kernels given here allow."""
    arrays = [x.double() for x in xs]
    arrays = [x - x.mean(dim=0) for x in arrays]
    values = oracle.np_hsic_matrix(arrays, None, kernel, estimator)
    return values / oracle.np_scales(arrays, None, kernel, estimator)


@pytest.mark.parametrize("offset", [0, 10, 100, 1000])
@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF()], ids=["linear", "rbf"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_offset_of_the_features(offset: float, kernel: sk.Linear, estimator: str) -> None:
    # The offset is in standard deviations, with a sign and size of its own in every column.
    for n, widths in ((8, (256, 40, 3)), (64, (5, 64, 300)), (130, (4, 1000))):
        xs = []
        for x in oracle.layers(n, widths, torch.float64):
            shift = offset * (0.5 + torch.rand(x.shape[1])) * torch.randn(x.shape[1]).sign()
            xs.append((x / x.std(dim=0) + shift).float())
        actual = sk.cka_matrix(xs, kernel=kernel, estimator=estimator).double().numpy()
        assert np.abs(actual - np_cka(xs, kernel, estimator)).max() <= 1e-5


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("offset", [10, 1000])
def test_self_hsic_stays_positive_under_an_offset(offset: float, estimator: str) -> None:
    # The plain formula at float32 gives a non-positive value in most draws at these offsets.
    for _ in range(20):
        x = torch.randn(8, 256) + offset
        expected = oracle.np_hsic_matrix([x], None, sk.Linear(), estimator).item()
        value = sk.hsic(x, x, estimator=estimator).item()
        assert value == pytest.approx(expected, rel=1e-4)
        assert value > 0


@pytest.mark.parametrize("dtype", oracle.LOW_PRECISION, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_offset_at_sixteen_bits(dtype: torch.dtype, estimator: str) -> None:
    # The features are rounded with the offset in them; what is left of them is then exact input.
    xs = [(x + 10).to(dtype) for x in oracle.layers(16, (64, 200))]
    target = np_cka(xs, sk.Linear(), estimator)
    usual = oracle.eager_cka_matrix(xs, None, sk.Linear(), estimator)
    usual_error = np.abs(usual.double().numpy() - target).max()
    actual = sk.cka_matrix(xs, estimator=estimator)
    assert np.abs(actual.double().numpy() - target).max() <= 2 * usual_error + 1e-6


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF(), sk.Cosine()], ids=repr)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [8, 100])
def test_cka_does_not_see_the_scale(kernel: sk.Linear, estimator: str, n: int) -> None:
    for widths in ((5, 7), (300, 90)):
        xs = oracle.layers(n, widths)
        expected = sk.cka_matrix(xs, kernel=kernel, estimator=estimator)
        for first, second in ((1e-6, 1e-6), (1e6, 1e6), (1e-6, 1e6), (1e-8, 1.0), (1.0, 1e8)):
            scaled = [xs[0] * first, xs[1] * second]
            actual = sk.cka_matrix(scaled, kernel=kernel, estimator=estimator)
            torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)
            total = sk.cka_sum([scaled], kernel=kernel, estimator=estimator)
            torch.testing.assert_close(total, expected.sum(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_powers_of_two_change_no_bit(estimator: str) -> None:
    xs = oracle.layers(9, (30, 70))
    expected = sk.cka_matrix(xs, estimator=estimator)
    for factor in (2.0**-20, 2.0**20):
        actual = sk.cka_matrix([x * factor for x in xs], estimator=estimator)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_gradients_of_scaled_features(estimator: str, scale: float) -> None:
    # f(s x) = f(x) gives s f'(s x) = f'(x).
    xs = oracle.layers(8, (40, 300))
    plain, scaled = oracle.leaves(xs), oracle.leaves([x * scale for x in xs])
    sk.cka_sum([plain], estimator=estimator).backward()
    sk.cka_sum([scaled], estimator=estimator).backward()
    expected = [x.grad for x in plain]
    assert oracle.relative_norm([x.grad * scale for x in scaled], expected) <= 2e-5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_loud_constant_feature_does_not_drown_a_layer(estimator: str) -> None:
    # A constant column carries no information, however large it is against the others.
    x, y = oracle.layers(16, (50, 40))
    loud = torch.cat([x, torch.full((16, 1), 3e4)], dim=1)
    expected = sk.cka(x, y, estimator=estimator)
    torch.testing.assert_close(sk.cka(loud, y, estimator=estimator), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 8, 33, 200])
def test_a_layer_is_like_itself(estimator: str, n: int) -> None:
    for dtype in oracle.DTYPES:
        xs = oracle.layers(n, (9, 64, 1000), dtype)
        for kernel in oracle.KERNELS.values():
            diagonal = sk.cka_matrix(xs, kernel=kernel, estimator=estimator).diagonal()
            # A narrow kernel sees no two samples of a wide layer as alike: its matrix is I.
            live = diagonal != 0
            assert (diagonal[live] - 1).abs().max() <= 1e-6
            if kernel != oracle.KERNELS["rbf-bandwidth"]:
                assert live.all()
