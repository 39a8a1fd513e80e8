"""0/0: where a layer carries no information, CKA is 0 with zero gradient, never NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle
from .oracle import DTYPES, ESTIMATORS, KERNELS

# 0.1 and 1/3 have no exact binary form, so that a mean computed carelessly leaves a remainder;
# at 1e6 that remainder is large against 1. float16 ends at 65504.
CONSTANTS = (0.0, 0.1, -1 / 3, 1e6)
# The least n, an odd row of a tile, lengths that no vector register divides, and n beyond a tile.
SHAPES = ((4, 3), (5, 1000), (7, 4099), (13, 5), (37, 20))


def constant(n: int, d: int, value: float, dtype: torch.dtype) -> Tensor:
    return torch.full((n, d), min(value, 6e4) if dtype == torch.float16 else value, dtype=dtype)


def identical(n: int, d: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(1, d, dtype=torch.float64) * 3 + 7).to(dtype).repeat(n, 1)


def check_dead(dead: Tensor, live: Tensor, kernel: sk.Linear, estimator: str) -> None:
    """Dead against live and against itself: value and gradients exactly 0."""
    options = {"kernel": kernel, "estimator": estimator}
    for pair in ((dead, live), (dead, dead.clone())):
        x, y = oracle.leaves(list(pair))
        value = sk.cka(x, y, **options)
        assert value.item() == 0
        value.backward()
        assert not x.grad.any()
        assert not y.grad.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_constant_features(dtype: torch.dtype, kernel: sk.Linear, estimator: str) -> None:
    for n, d in SHAPES:
        live = oracle.layers(n, (d,), dtype)[0] / d**0.5
        for value in CONSTANTS:
            if isinstance(kernel, sk.Polynomial):
                value = min(value, 100.0)  # its cube is to stay within float32
            check_dead(constant(n, d, value, dtype), live, kernel, estimator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_identical_samples(dtype: torch.dtype, kernel: sk.Linear, estimator: str) -> None:
    for n, d in SHAPES:
        live = oracle.layers(n, (d,), dtype)[0] / d**0.5
        check_dead(identical(n, d, dtype), live, kernel, estimator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("n", [4, 8, 33])
def test_orthonormal_rows(dtype: torch.dtype, scale: float, n: int) -> None:
    # Their U-centred Gram matrix is 0 for the kernels that see inner products or distances.
    columns = [
        torch.eye(n, dtype=dtype),
        torch.eye(n, n + 50, dtype=dtype).flip(1),
        torch.linalg.qr(torch.randn(3 * n, n, dtype=dtype)).Q.T.contiguous(),
    ]
    for kernel in (sk.Linear(), sk.Cosine(), sk.RBF()):
        for rows in columns[: 2 if isinstance(kernel, sk.RBF) else 3]:
            live = oracle.layers(n, (6,), dtype)[0]
            check_dead(rows * scale, live, kernel, "unbiased")
            assert sk.cka(rows * scale, rows * scale, estimator="biased").item() > 0.99


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_features(dtype: torch.dtype, kernel: sk.Linear, estimator: str) -> None:
    live = oracle.layers(8, (6,), dtype)[0] / 2
    check_dead(torch.empty(8, 0, dtype=dtype), live, kernel, estimator)
    check_dead(torch.empty(8, 3, 0, 2, dtype=dtype), live, kernel, estimator)
    options = {"kernel": kernel, "estimator": estimator}
    both = sk.hsic_matrix([torch.empty(8, 0, dtype=dtype), live], **options)
    assert abs(both[0, 1].item()) <= 1e-6
    assert both[1, 1].item() > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dead_layers_among_live_ones(dtype: torch.dtype, kernel: sk.Linear, estimator: str) -> None:
    options = {"kernel": kernel, "estimator": estimator}
    for n in (8, 40):
        live = [x / x.shape[1] ** 0.5 for x in oracle.layers(n, (5, 70, 21), dtype)]
        dead = [constant(n, 33, 0.1, dtype), identical(n, 17, dtype)]
        xs = oracle.leaves([live[0], dead[0], live[1], dead[1], live[2]])
        alone = oracle.leaves(live)
        matrix, small = sk.cka_matrix(xs, **options), sk.cka_matrix(alone, **options)
        assert not matrix[[1, 3]].any()
        assert not matrix[:, [1, 3]].any()
        torch.testing.assert_close(matrix[::2, ::2], small, rtol=1e-5, atol=1e-6)
        for grouped, few in (
            (sk.cka_sum([xs], **options), sk.cka_sum([alone], **options)),
            (sk.cka_sum([xs[:3], xs[3:]], **options), None),
        ):
            for x in xs + alone:
                x.grad = None
            grouped.backward()
            assert not xs[1].grad.any()
            assert not xs[3].grad.any()
            assert all(torch.isfinite(x.grad).all() and x.grad.any() for x in xs[:3:2])
            if few is not None:
                torch.testing.assert_close(grouped, few, rtol=1e-5, atol=1e-5)
                few.backward()
                found = [xs[0].grad, xs[2].grad, xs[4].grad]
                assert oracle.relative_norm(found, [x.grad for x in alone]) <= max(
                    1e-4, 2 * torch.finfo(dtype).eps
                )


def test_sum_over_dead_layers_only() -> None:
    for reduction in ("sum", "mean"):
        xs = oracle.leaves([constant(8, 5, 0.1, torch.float32), torch.zeros(8, 3)])
        value = sk.cka_sum([xs], reduction=reduction)
        value.backward()
        assert value.item() == 0
        assert not xs[0].grad.any()
        assert not xs[1].grad.any()


def test_mean_over_a_single_layer_has_no_pair() -> None:
    for n in (4, 8, 40):
        (x,) = oracle.leaves(oracle.layers(n, (5,)))
        value = sk.cka_sum([[x]], reduction="mean")
        assert value.item() == 0
        value.backward()
        assert not x.grad.any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hsic_of_dead_features_is_finite(estimator: str) -> None:
    for kernel in KERNELS.values():
        x, y = oracle.leaves([constant(8, 40, 0.1, torch.float32), *oracle.layers(8, (6,))])
        value = sk.hsic(x, y, kernel=kernel, estimator=estimator)
        value.backward()
        assert abs(value.item()) <= 1e-3 * sk.hsic(y, y, kernel=kernel).item()
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(y.grad).all()


def test_one_sample_of_zeros_has_no_direction() -> None:
    x, y = oracle.layers(8, (6, 9))
    x[3] = 0
    x.requires_grad_()
    assert not sk.gram(x, "cosine")[3].any()
    sk.cka(x, y, kernel="cosine").backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[3].any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rbf_where_most_samples_coincide(estimator: str) -> None:
    # The median distance is 0: the limit of a narrow kernel, which tells equal from different.
    x = torch.zeros(8, 5)
    x[0] = 1.0
    y = oracle.layers(8, (9,))[0]
    x.requires_grad_()
    indicator = (torch.cdist(x.detach(), x.detach()) == 0).double().numpy()
    assert (sk.gram(x, sk.RBF()).detach().double().numpy() == indicator).all()
    value = sk.cka(x, y, kernel="rbf", estimator=estimator)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()


def test_nearly_constant_features_are_not_taken_for_dead() -> None:
    for dtype, step in ((torch.float32, 1e-3), (torch.float64, 1e-10)):
        x = 1 + step * torch.randn(16, 40, dtype=dtype)
        assert sk.cka(x, x).item() == pytest.approx(1, abs=1e-6)
        assert sk.cka(x, x, estimator="biased").item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_features_that_are_not_finite_are_named(
    value: float, kernel: sk.Linear, estimator: str
) -> None:
    options = {"kernel": kernel, "estimator": estimator}
    for n, dtype in ((8, torch.float32), (33, torch.float64), (9, torch.bfloat16)):
        x, y, z = (x / x.shape[1] ** 0.5 for x in oracle.layers(n, (5, 30, 64), dtype))
        bad = y.clone()
        bad[n // 2, 7] = value
        for name, function, arguments in (
            (r"xs\[1\]", sk.cka_matrix, ([x, bad],)),
            (r"xs\[0\]", sk.hsic_matrix, ([bad, x],)),
            (r"ys\[2\]", sk.cka_matrix, ([x, y, z], [x, y, bad])),
            (r"groups\[1\]\[0\]", sk.cka_sum, ([[x, y, z], [bad]],)),
            (r"groups\[0\]\[2\]", sk.cka_sum, ([[x, y, bad]],)),
            (r"\by\b", sk.cka, (x, bad)),
            (r"\bx\b", sk.hsic, (bad, x)),
        ):
            with pytest.raises(ValueError, match=name + r".*\b30\b.*finite"):
                function(*arguments, **options)
        with pytest.raises(ValueError, match=r"\bx\b.*\b30\b.*finite"):
            sk.gram(bad, kernel, center="u")


def test_not_finite_beside_a_dead_layer() -> None:
    bad = torch.randn(8, 5)
    bad[0, 0] = float("nan")
    for pair in ([torch.zeros(8, 3), bad], [bad, torch.zeros(8, 3)]):
        with pytest.raises(ValueError, match="finite"):
            sk.cka_matrix(pair)
        with pytest.raises(ValueError, match="finite"):
            sk.cka(*pair)


def test_overflow_of_finite_features_is_told_apart() -> None:
    x = torch.randn(8, 5) * 1e30
    with pytest.raises(ValueError, match=r"too large|range"):
        sk.hsic(x, x)
