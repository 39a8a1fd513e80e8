"""Standard errors, permutation tests and levels of chance against brute force and simulation."""

import math

import pytest
import torch

import sparsekern as sk
from sparsekern.analysis import CKA, chance_level, permutation_test
from sparsekern.analysis.sums import BatchSums, Shape
from sparsekern.analysis.uncertainty import bootstrap, jackknife, p_values


def _sums(tools, count, n=12):
    return [
        sk.hsic_matrix([x.double() for x in tools.correlated(n, (4, 30), seed)])
        for seed in range(count)
    ]


def _pack(matrices):
    shape = Shape(2, 2)
    return torch.stack([shape.pack(m, m.diagonal(), m.diagonal()) for m in matrices]), shape


def _cka(total):
    norms = total.diagonal().sqrt()
    return total / norms[:, None] / norms


def test_jackknife_leaves_out_one_batch_at_a_time(tools):
    matrices = _sums(tools, 7)
    total = sum(matrices)
    left = torch.stack([_cka(total - m) for m in matrices])
    expected = (6 / 7 * (left - left.mean(0)).square().sum(0)).sqrt()
    groups, shape = _pack(matrices)
    torch.testing.assert_close(jackknife(groups, shape), expected, atol=1e-12, rtol=1e-6)
    assert jackknife(groups[:1], shape) is None


def test_bootstrap_agrees_with_the_jackknife(tools):
    groups, shape = _pack(_sums(tools, 60))
    one, two = jackknife(groups, shape), bootstrap(groups, shape, 4000)
    assert two[0, 1] == pytest.approx(float(one[0, 1]), rel=0.15)
    assert torch.equal(two, bootstrap(groups, shape, 4000))
    assert not torch.equal(two, bootstrap(groups, shape, 4000, seed=1))


def test_the_standard_error_is_the_spread_of_repetitions(tools):
    values, errors = [], []
    for repetition in range(40):
        generator = torch.Generator().manual_seed(repetition)
        mix = [torch.randn(4, d, generator=torch.Generator().manual_seed(5)) for d in (6, 9)]
        batches = []
        for _ in range(20):
            latent = torch.randn(16, 4, generator=generator)
            batches.append(
                [latent @ m + torch.randn(16, m.shape[1], generator=generator) for m in mix]
            )
        result = tools.compare_given(batches)
        values.append(float(result.matrix[0, 1]))
        errors.append(float(result.standard_error[0, 1]))
    spread = torch.tensor(values).std().item()
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.35)


@pytest.mark.parametrize("way", ["jackknife", "bootstrap", None])
def test_ways_to_a_standard_error(way, net, images):
    result = CKA(net, standard_error=way).compare(images.split(8), progress=False)
    assert (result.standard_error is None) == (way is None)
    assert CKA(net).compare([images], progress=False).standard_error is None  # one batch


def test_groups_are_merged_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr("sparsekern.analysis.sums._MOST_GROUPS", 8)
    sums = BatchSums("unbiased", one_model=True)
    batches = [torch.full((3,), float(2**i), dtype=torch.float64) for i in range(30)]
    for packed in batches:
        sums._append(packed)
    assert len(sums.groups) == 8
    assert torch.stack(sums.groups).sum(0).tolist() == [2.0**30 - 1] * 3
    counts = [bin(int(group[0])).count("1") for group in sums.groups]
    assert counts == [4] * 7 + [2]


def test_permuted_products_are_those_of_permuted_features(tools):
    x, y = tools.correlated(9, (4, 30), 0)
    sums = BatchSums("unbiased", one_model=True, permutations=5, seed=3)
    u, v = (sk.gram(one.double(), center="u") for one in (x, y))
    null = sums._permuted(u.reshape(1, -1), v.reshape(1, -1), 9)
    generator = torch.Generator().manual_seed(3)
    for value in null[:, 0, 0]:
        order = torch.randperm(9, generator=generator)
        expected = sk.hsic(x.double(), y[order].double()) * 9 * 6
        assert float(value) == pytest.approx(float(expected), rel=1e-9)


def test_p_values_count_the_observed_one():
    null = torch.tensor([0.1, 0.5, 0.7, 0.9])[:, None, None]
    assert p_values(null, torch.tensor([[0.6]])).item() == pytest.approx(3 / 5)
    assert p_values(null, torch.tensor([[2.0]])).item() == pytest.approx(1 / 5)


def test_permutations_tell_related_from_unrelated_layers(tools):
    generator = torch.Generator().manual_seed(0)
    batches = [
        [*tools.correlated(20, (5, 9), seed), torch.randn(20, 6, generator=generator)]
        for seed in range(4)
    ]
    result = tools.compare_given(batches, permutations=199)
    assert result.p_values[0, 1] == pytest.approx(1 / 200)
    assert result.p_values[0, 2] > 0.05


def test_p_values_of_unrelated_layers_are_uniform():
    generator = torch.Generator().manual_seed(1)
    p = [
        permutation_test(*torch.randn(2, 12, 3, generator=generator), permutations=99)[1]
        for _ in range(200)
    ]
    assert sum(value <= 0.25 for value in p) / 200 == pytest.approx(0.25, abs=0.08)
    assert sum(value <= 0.5 for value in p) / 200 == pytest.approx(0.5, abs=0.1)


def test_permutation_test_of_a_pair(tools):
    x, y = tools.correlated(20, (5, 9), 0)
    value, p = permutation_test(x, y, permutations=499)
    assert value == pytest.approx(float(sk.cka(x, y)), abs=1e-5)
    assert p == pytest.approx(1 / 500)
    with pytest.raises(ValueError, match="must hold the same samples"):
        permutation_test(x, y[:5])
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        permutation_test(x, y, permutations=0)


def test_levels_of_chance(tools):
    generator = torch.Generator().manual_seed(0)
    batches = [[torch.randn(10, 50, generator=generator) for _ in range(12)] for _ in range(3)]
    result = tools.compare_given(batches)
    off = result.matrix[~torch.eye(12, dtype=torch.bool)]
    assert chance_level("unbiased", [10] * 3) == (0.0, pytest.approx(result.chance))
    assert off.std().item() == pytest.approx(result.chance, rel=0.3)
    biased = tools.compare_given(batches, estimator="biased").matrix[0, 1]
    mean, _ = chance_level("biased", [10] * 3, (50, 50))
    assert float(biased) == pytest.approx(mean, abs=0.1)
    for mode, samples in (("minibatch", 10), ("exact", 30)):
        levels = tools.compare_given(batches, estimator="biased", mode=mode).chance_levels
        mean, _ = chance_level("biased", [samples], (50, 50))
        assert levels[3, 4] == pytest.approx(mean, abs=1e-12)
    assert result.chance_levels is None
    assert math.isnan(tools.compare_given(batches, estimator="biased").chance)
    with pytest.raises(ValueError, match="features must be given"):
        chance_level("biased", [10])
    with pytest.raises(ValueError, match="at least 4"):
        chance_level("unbiased", [3])
