"""Values against textbook numpy at float64: every operator, kernel, estimator and shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle
from .oracle import DTYPES, ESTIMATORS, KERNELS

# n: the least (4), odd and even around the widths of vector registers (5, 7-9, 16, 31-33), a
# median over an odd and an even number of distances, tile edges of the Gram (64, 100, 129) and
# many tiles (300). d: scalar features, less than a register, remainders of it (17), a whole
# number of them (64), more than one panel (1000), and a long odd one (4099). Where d is well
# under n the feature-space form is the cheaper one; the grid has both sides and the middle.
SAMPLES = (4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 100, 129, 300)
WIDTHS = (1, 2, 3, 17, 64, 1000, 4099)


@pytest.fixture(scope="module")
def kornblith() -> tuple[Tensor, Tensor]:
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    y = random.randn(100, 10) + x
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize(
    ("kernel", "estimator", "expected"),
    [
        ("linear", "biased", 0.55761),
        ("linear", "unbiased", 0.51346),
        (sk.RBF(fraction=0.5), "biased", 0.65483),
    ],
)
def test_published_vectors(
    kornblith: tuple[Tensor, Tensor], kernel: str | sk.RBF, estimator: str, expected: float
) -> None:
    for dtype in (torch.float64, torch.float32):
        x, y = (t.to(dtype) for t in kornblith)
        value = sk.cka(x, y, kernel=kernel, estimator=estimator)
        assert value.item() == pytest.approx(expected, abs=6e-6)


def check_pair_of_matrices(
    xs: list[Tensor], ys: list[Tensor] | None, kernel: sk.Linear, estimator: str
) -> None:
    """HSIC and CKA at the dtype of the features: within twice the error of plain PyTorch."""
    expected = oracle.np_hsic_matrix(xs, ys, kernel, estimator)
    scales = oracle.np_scales(xs, ys, kernel, estimator)
    hsic = sk.hsic_matrix(xs, ys, kernel=kernel, estimator=estimator)
    cka = sk.cka_matrix(xs, ys, kernel=kernel, estimator=estimator)
    wide = torch.float64 if xs[0].dtype == torch.float64 else torch.float32
    assert hsic.shape == cka.shape == (len(xs), len(xs if ys is None else ys))
    assert hsic.dtype == cka.dtype == wide
    usual_hsic = oracle.eager_hsic_matrix(xs, ys, kernel, estimator)
    usual_cka = oracle.eager_cka_matrix(xs, ys, kernel, estimator)
    floor = 1e-6 if wide == torch.float32 else 1e-12
    for name, actual, usual, target, unit in (
        ("hsic", hsic, usual_hsic, expected, scales),
        ("cka", cka, usual_cka, expected / scales, np.ones_like(scales)),
    ):
        error = oracle.rms((actual.double().numpy() - target) / unit)
        usual_error = oracle.rms((usual.double().numpy() - target) / unit)
        assert error <= 2 * usual_error + floor, f"{name}: {error:.2e} against {usual_error:.2e}"


@pytest.mark.parametrize("n", SAMPLES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_linear_at_every_shape(n: int, estimator: str) -> None:
    xs = oracle.layers(n, WIDTHS)
    check_pair_of_matrices(xs, None, sk.Linear(), estimator)
    for d in WIDTHS:  # each width on its own: the form may be chosen from all widths of a call
        check_pair_of_matrices(*([x] for x in oracle.layers(n, (d, d))), sk.Linear(), estimator)


@pytest.mark.parametrize("n", [4, 5, 8, 33, 100])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_kernel(n: int, kernel: sk.Linear, estimator: str) -> None:
    # Twice over, where rounding alone decides: pooled in one matrix, the bound is not of one draw.
    xs = [x / max(1, x.shape[1]) ** 0.5 for x in oracle.layers(n, (2, 3, 17, 64, 300) * 2)]
    check_pair_of_matrices(xs[:5], xs[3:], kernel, estimator)
    check_pair_of_matrices(xs, None, kernel, estimator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_dtype(dtype: torch.dtype, kernel: sk.Linear, estimator: str) -> None:
    for n in (8, 33):
        xs = [(x / x.shape[1] ** 0.5) for x in oracle.layers(n, (17, 64, 130, 1000))]
        check_pair_of_matrices([x.to(dtype) for x in xs], None, kernel, estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [8, 33, 64])
def test_around_the_crossover_of_the_two_forms(n: int, estimator: str) -> None:
    for d in sorted({n // 4, n // 2, n - 1, n, n + 1, 2 * n}):
        for dtype in (torch.float32, torch.float64):
            check_pair_of_matrices(oracle.layers(n, (d, d, d), dtype), None, sk.Linear(), estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_many_samples_of_few_features(estimator: str) -> None:
    check_pair_of_matrices(oracle.layers(600, (5, 5, 3)), None, sk.Linear(), estimator)
    check_pair_of_matrices(oracle.layers(1500, (5,)), None, sk.Linear(), estimator)
    mixed = oracle.layers(300, (5, 700))  # one layer for either form, in one call
    check_pair_of_matrices(mixed, None, sk.Linear(), estimator)
    check_pair_of_matrices(mixed[:1], mixed[1:], sk.Linear(), estimator)


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_number_of_layers(count: int, estimator: str) -> None:
    xs = oracle.layers(8, tuple(11 * i + 5 for i in range(count)))
    check_pair_of_matrices(xs, None, sk.Linear(), estimator)
    check_pair_of_matrices(xs, oracle.layers(8, (4, 90, 9)), sk.Linear(), estimator)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scalar_operators_are_entries_of_the_matrices(kernel: sk.Linear, estimator: str) -> None:
    x, y = oracle.layers(9, (7, 20), torch.float64)
    for scalar, matrix in ((sk.hsic, sk.hsic_matrix), (sk.cka, sk.cka_matrix)):
        value = scalar(x, y, kernel=kernel, estimator=estimator)
        assert value.shape == ()
        full = matrix([x, y], kernel=kernel, estimator=estimator)
        torch.testing.assert_close(value, full[0, 1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 2), (2, 4, 1), (3, 3, 3)], ids=str)
def test_cka_sum(sizes: tuple[int, ...], kernel: sk.Linear, estimator: str) -> None:
    groups = [oracle.layers(8, tuple(range(4, 4 + size)), torch.float64) for size in sizes]
    matrices = [
        oracle.np_hsic_matrix(g, None, kernel, estimator)
        / oracle.np_scales(g, None, kernel, estimator)
        for g in groups
    ]
    total = sk.cka_sum(groups, kernel=kernel, estimator=estimator)
    assert total.shape == ()
    assert total.item() == pytest.approx(sum(m.sum() for m in matrices), rel=1e-10)
    together = [x for group in groups for x in group]
    matrix = oracle.np_hsic_matrix(together, None, kernel, estimator)
    matrix /= oracle.np_scales(together, None, kernel, estimator)
    pairs = matrix[np.triu_indices(len(together), k=1)]
    mean = sk.cka_sum(groups, kernel=kernel, estimator=estimator, reduction="mean")
    assert mean.item() == pytest.approx(pairs.mean() if len(pairs) else 0.0, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("n", [4, 5, 9, 33, 129])
@pytest.mark.parametrize("d", [1, 6, 100, 1000])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_gram(n: int, d: int, kernel: sk.Linear) -> None:
    x = oracle.layers(n, (d,), torch.float64)[0] / d**0.5
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        rounded = x.to(dtype)
        k = oracle.np_gram(rounded.numpy(), kernel)
        h = np.eye(n) - np.ones((n, n)) / n
        off_diagonal = k - np.diag(np.diag(k))
        rows = off_diagonal.sum(axis=1)
        u = off_diagonal - np.add.outer(rows, rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(u, 0)
        for center, expected in ((None, k), ("double", h @ k @ h), ("u", u)):
            actual = sk.gram(rounded, kernel, center=center)
            assert actual.dtype == dtype
            error = np.abs(actual.double().numpy() - expected).max()
            assert error <= tolerance * np.abs(k).max(), center
            if center == "u":
                assert torch.equal(actual.diagonal(), torch.zeros(n, dtype=dtype))


def test_gram_of_one_and_of_three_samples() -> None:
    x = torch.tensor([[1.0, 2.0]])
    assert sk.gram(x).tolist() == [[5.0]]
    assert sk.gram(x, center="double").tolist() == [[0.0]]
    # With three samples the space of U-centred matrices is {0}.
    assert sk.gram(torch.randn(3, 5), center="u").abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["linear", "rbf", "polynomial", "cosine"])
def test_names_are_the_default_objects(name: str) -> None:
    objects = {
        "linear": sk.Linear(),
        "rbf": sk.RBF(0.5),
        "polynomial": sk.Polynomial(2, 1.0),
        "cosine": sk.Cosine(),
    }
    xs = oracle.layers(8, (5, 30))
    for function in (sk.cka_matrix, sk.hsic_matrix):
        assert torch.equal(function(xs, kernel=name), function(xs, kernel=objects[name]))
    assert torch.equal(sk.gram(xs[0], name), sk.gram(xs[0], objects[name]))


def test_defaults_are_linear_and_unbiased() -> None:
    x, y = oracle.layers(8, (5, 30))
    assert torch.equal(sk.cka(x, y), sk.cka(x, y, kernel="linear", estimator="unbiased"))
    assert torch.equal(sk.hsic(x, y), sk.hsic(x, y, kernel="linear", estimator="unbiased"))


def test_negative_values_are_not_clamped() -> None:
    draws = [sk.cka(torch.randn(4, 6), torch.randn(4, 6)).item() for _ in range(40)]
    assert min(draws) < -0.3
    assert max(draws) > 0.3
    draws = [sk.hsic(torch.randn(4, 6), torch.randn(4, 6)).item() for _ in range(40)]
    assert min(draws) < 0 < max(draws)
