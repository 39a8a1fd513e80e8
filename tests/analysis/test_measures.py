"""Each measure against its formula written out, or another library."""

import numpy as np
import pytest
import torch

from sparsekern.analysis import cknna, mutual_knn, procrustes, pwcca, rsa, svcca

scipy_stats = pytest.importorskip("scipy.stats")
scipy_linalg = pytest.importorskip("scipy.linalg")
scipy_distance = pytest.importorskip("scipy.spatial.distance")


@pytest.fixture
def pair(tools):
    x, y = tools.correlated(30, (5, 8), 2)
    return x.double() + 3, y.double()


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean"])
def test_rsa_is_the_correlation_of_dissimilarities(distance, pair):
    vectors = [scipy_distance.pdist(one.numpy(), distance) for one in pair]
    spearman = rsa(*pair, distance=distance)
    assert spearman == pytest.approx(scipy_stats.spearmanr(*vectors).statistic, abs=1e-9)
    pearson = rsa(*pair, distance=distance, comparison="pearson")
    assert pearson == pytest.approx(np.corrcoef(*vectors)[0, 1], abs=1e-9)


def test_rsa_shares_ranks_among_ties():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0])[:, None]
    y = torch.tensor([0.0, 0.0, 1.0, 1.0, 4.0])[:, None]
    vectors = [scipy_distance.pdist(one.numpy()) for one in (x, y)]
    expected = scipy_stats.spearmanr(*vectors).statistic
    assert rsa(x, y, distance="euclidean") == pytest.approx(expected, abs=1e-9)


def _nearest(x, i, k, cosine):
    scores = []
    for j in range(len(x)):
        score = float(x[i] @ x[j])
        if cosine:
            score /= float(x[i].norm() * x[j].norm())
        scores.append((-score, j))
    return {j for _, j in sorted(one for one in scores if one[1] != i)[:k]}


@pytest.mark.parametrize("k", [1, 5, 29])
def test_mutual_neighbours_one_by_one(k, pair):
    shared = [
        len(_nearest(pair[0], i, k, True) & _nearest(pair[1], i, k, True)) / k for i in range(30)
    ]
    assert mutual_knn(*pair, k=k) == pytest.approx(sum(shared) / 30, abs=1e-12)
    assert mutual_knn(pair[0], pair[0], k=k) == 1


@pytest.mark.parametrize("k", [1, 5, 29])
def test_cknna_entry_by_entry(k, pair):
    x, y = (one - one.mean(0) for one in pair)

    def align(a, b):
        total = 0.0
        gram_a, gram_b = a @ a.T, b @ b.T
        for i in range(30):
            for j in _nearest(a, i, k, False) & _nearest(b, i, k, False):
                total += float(
                    (gram_a[i, j] - gram_a[i].mean()) * (gram_b[i, j] - gram_b[i].mean())
                )
        return total

    expected = align(x, y) / (align(x, x) * align(y, y)) ** 0.5
    assert cknna(*pair, k=k) == pytest.approx(expected, abs=1e-9)


def test_procrustes_is_the_best_rotation(pair):
    x, y = (one - one.mean(0) for one in pair)
    padded = torch.nn.functional.pad(x, (0, 3))
    rotation, scale = scipy_linalg.orthogonal_procrustes(padded.numpy(), y.numpy())
    assert procrustes(*pair) == pytest.approx(float(scale / (x.norm() * y.norm())), abs=1e-9)
    unit_x, unit_y = padded / padded.norm(), y / y.norm()
    distance = (unit_x @ torch.from_numpy(rotation) - unit_y).square().sum()
    assert 2 - 2 * procrustes(*pair) == pytest.approx(float(distance), abs=1e-9)


def test_svcca_is_the_mean_of_principal_angles(pair):
    x, y = ((one - one.mean(0)).numpy() for one in pair)
    angles = scipy_linalg.subspace_angles(x, y)
    assert svcca(*pair, variance=1.0) == pytest.approx(np.cos(angles).mean(), abs=1e-9)

    def leading(z):
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        kept = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.8)) + 1
        return u[:, :kept]

    angles = scipy_linalg.subspace_angles(leading(x), leading(y))
    assert svcca(*pair, variance=0.8) == pytest.approx(np.cos(angles).mean(), abs=1e-9)


def test_pwcca_weighs_by_the_definition(pair):
    x, y = (one - one.mean(0) for one in pair)
    # Canonical directions from the whitened covariances, as in the textbook.
    cxx, cyy, cxy = x.T @ x, y.T @ y, x.T @ y
    white_x = torch.linalg.inv(torch.linalg.cholesky(cxx))
    white_y = torch.linalg.inv(torch.linalg.cholesky(cyy))
    u, rho, _ = torch.linalg.svd(white_x @ cxy @ white_y.T, full_matrices=False)
    variates = x @ white_x.T @ u
    weights = torch.stack(
        [sum((variates[:, i] @ x[:, j]).abs() for j in range(x.shape[1])) for i in range(len(rho))]
    )
    expected = float((weights * rho).sum() / weights.sum())
    assert pwcca(*pair) == pytest.approx(expected, abs=1e-9)
    assert pwcca(*pair) != pytest.approx(pwcca(*reversed(pair)), abs=1e-4)


@pytest.mark.parametrize("measure", [rsa, mutual_knn, cknna, procrustes, svcca, pwcca])
def test_common_behaviour(measure, pair):
    x, y = pair
    assert measure(x, x) == pytest.approx(1, abs=1e-9)
    assert measure(x.float(), y.reshape(30, 2, 2, 2)) == pytest.approx(measure(x, y), abs=1e-4)
    with pytest.raises(ValueError, match="x has 30 samples and y 7"):
        measure(x, y[:7])
    with pytest.raises(TypeError, match=r"y must be a floating-point tensor, got torch\.int64"):
        measure(x, y.long())
    with pytest.raises(ValueError, match="x holds values that are not finite"):
        measure(x * torch.nan, y)


@pytest.mark.parametrize("measure", [rsa, cknna, procrustes, svcca, pwcca])
def test_without_variation_it_is_zero(measure):
    assert measure(torch.ones(15, 4), torch.randn(15, 4)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: rsa(x, y, distance="l1"), "distance must be one of correlation"),
        (lambda x, y: rsa(x, y, comparison="l1"), "comparison must be one of spearman"),
        (lambda x, y: mutual_knn(x, y, k=30), "k must be from 1 to 29 for 30 samples, got 30"),
        (lambda x, y: cknna(x, y, k=0), "k must be from 1 to 29"),
        (lambda x, y: svcca(x, y, variance=0), r"variance must be in \(0, 1\], got 0"),
        (lambda x, y: pwcca(torch.randn(30, 29), y), "x has 29 directions for 30 samples"),
    ],
)
def test_wrong_arguments(call, message, pair):
    with pytest.raises(ValueError, match=message):
        call(*pair)
