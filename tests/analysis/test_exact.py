"""The exact mode is the CKA of one batch, by moments, by tiles, and between the two kinds."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.analysis import CKA, exact
from sparsekern.analysis.kernel_tiles import KernelTiles
from sparsekern.analysis.plan import Budget, Plan, make_plan
from sparsekern.analysis.spill import Spill

pytestmark = pytest.mark.filterwarnings("error")
_DIMS = (3, 12, 40, 150)
_SIZES = (17, 1, 30, 9, 3)  # batches of any size


def _batches(tools, seed=0, shift=0.0):
    xs = tools.correlated(sum(_SIZES), _DIMS, seed)
    xs = [x + shift * torch.linspace(0, 1, len(x))[:, None] for x in xs]  # the first batch differs
    return xs, list(zip(*(x.split(_SIZES) for x in xs), strict=True))


def _forced(monkeypatch, moments, on_disk=False, tile=16):
    def plan(dims, samples, budget, *, element, **rest):
        stored = element * samples * sum(d for i, d in enumerate(dims) if i not in moments)
        return Plan(tuple(moments), 0, stored, on_disk, tile, 1.0)

    monkeypatch.setattr(exact, "make_plan", plan)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "cosine"])
@pytest.mark.parametrize("moments", [(), (0, 1), (0, 2), (3,), (0, 1, 2, 3)])
def test_one_model(moments, kernel, estimator, monkeypatch, tools):
    _forced(monkeypatch, moments)
    xs, batches = _batches(tools)
    result = tools.compare_given(batches, mode="exact", kernel=kernel, estimator=estimator)
    expected = sk.cka_matrix([x.double() for x in xs], kernel=kernel, estimator=estimator)
    torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)
    assert (result.n, result.mode) == (60, "exact")
    assert result.standard_error is None


@pytest.mark.parametrize("moments", [(), (0, 2), (1, 5), (0, 4, 5), tuple(range(8))])
def test_two_models(moments, monkeypatch, tools):
    _forced(monkeypatch, moments)
    xs, ys = _batches(tools, 1), _batches(tools, 1)
    ys[0].reverse()
    batches2 = [batch[::-1] for batch in ys[1]]
    comparison = CKA(
        tools.Given(4).eval(),
        tools.Given(4).eval(),
        mode="exact",
        inputs=lambda batch: tuple(batch["features"]),
    )
    result = comparison.compare(
        tools.given_loader(xs[1]), tools.given_loader(batches2), progress=False
    )
    expected = sk.cka_matrix([x.double() for x in xs[0]], [y.double() for y in ys[0]])
    torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("moments", [(), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("shift", [30.0, 1000.0])
def test_data_in_an_unfortunate_order(moments, shift, monkeypatch, tools):
    """The mean of the first batch is far from that of all."""
    _forced(monkeypatch, moments)
    xs, batches = _batches(tools, shift=shift)
    result = tools.compare_given(batches, mode="exact")
    expected = sk.cka_matrix([x.double() for x in xs])
    torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("moments", [(), (0, 1, 2, 3)])
@pytest.mark.parametrize(("offset", "scale"), [(1000, 1), (0, 1e-6), (0, 1e6)])
def test_offset_and_scale(moments, offset, scale, monkeypatch, tools):
    _forced(monkeypatch, moments)
    xs, _ = _batches(tools)
    xs = [scale * (x + offset * x.std()) for x in xs]
    batches = list(zip(*(x.split(_SIZES) for x in xs), strict=True))
    result = tools.compare_given(batches, mode="exact")
    expected = sk.cka_matrix([x.double() for x in xs])
    torch.testing.assert_close(result.matrix, expected, atol=1e-5 if offset else 1e-6, rtol=0)


@pytest.mark.parametrize("tile", [4, 7, 60, 100])
def test_tiles_of_any_size(tile, monkeypatch, tools):
    _forced(monkeypatch, (0,), tile=tile)
    xs, batches = _batches(tools)
    result = tools.compare_given(batches, mode="exact")
    expected = sk.cka_matrix([x.double() for x in xs])
    torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)


_KERNELS = (sk.RBF(), sk.RBF(0.7), sk.RBF(bandwidth=12.0), sk.Polynomial(2, 1.0))


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize(("estimator", "tile"), [("unbiased", 16), ("unbiased", 64), ("biased", 7)])
def test_other_kernels_by_tiles(kernel, estimator, tile, monkeypatch, tools):
    _forced(monkeypatch, (), tile=tile)
    xs, batches = _batches(tools)
    options = {"kernel": kernel, "estimator": estimator}
    result = tools.compare_given(batches, mode="exact", **options)
    expected = sk.cka_matrix([x.double() for x in xs], **options)
    torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("samples", [60, 57])  # an even number has two middle distances
def test_other_kernels_in_float64(kernel, samples, monkeypatch, tools):
    _forced(monkeypatch, (), tile=16)
    _, batches = _batches(tools, shift=30.0)
    wide = [[x.double() for x in batch] for batch in batches]
    wide = wide if samples == 60 else wide[:-1]
    result = tools.compare_given(wide, mode="exact", kernel=kernel)
    whole = [torch.cat(parts) for parts in zip(*wide, strict=True)]
    assert result.n == samples
    expected = sk.cka_matrix(whole, kernel=kernel)
    torch.testing.assert_close(result.matrix, expected, atol=1e-10, rtol=0)


def test_the_median_of_distances_is_exact(monkeypatch, tools):
    _forced(monkeypatch, (), tile=16)
    found = []
    select = KernelTiles._medians

    def spy(self, blocks):
        distances = [[] for _ in _DIMS]
        for layer, row, column, d in self._tiles(blocks, distances=True):
            distances[layer] += d.flatten().tolist() * (1 if row == column else 2)
        found.append((select(self, blocks), distances))
        return found[0][0]

    monkeypatch.setattr(KernelTiles, "_medians", spy)
    tools.compare_given(_batches(tools)[1], mode="exact", kernel="rbf")
    medians, distances = found[0]
    assert [len(d) for d in distances] == [60**2] * len(_DIMS)
    assert medians == [float(np.median(np.array(d))) for d in distances]


@pytest.mark.parametrize("kernel", ["rbf", "polynomial"])
def test_other_kernels_mark_constant_layers_and_scale(kernel, monkeypatch, tools):
    _forced(monkeypatch, (), tile=16)
    xs = [*tools.correlated(30, (5, 9), 0), torch.full((30, 4), 3.7)]
    batches = list(zip(*(x.split(10) for x in xs), strict=True))
    with pytest.warns(UserWarning, match=r"without variation between samples.*taps\.2"):
        result = tools.compare_given(batches, mode="exact", kernel=kernel)
    assert result.constant_rows == ["taps.2"]
    assert result.matrix[2].tolist() == [0, 0, 0]
    kernel = {"rbf": "rbf", "polynomial": sk.Polynomial(2, 0.0)}[kernel]
    for scale in (1e-6, 1e6):
        scaled = [[scale * x for x in batch[:2]] for batch in batches]
        result = tools.compare_given(scaled, mode="exact", kernel=kernel)
        expected = sk.cka_matrix([x.double() for x in xs[:2]], kernel=kernel)
        torch.testing.assert_close(result.matrix, expected, atol=1e-5, rtol=0)


def test_features_in_files(monkeypatch, tools, tmp_path):
    _forced(monkeypatch, (0, 1), on_disk=True)
    seen = []
    read = Spill.read

    def spy(self, layer, start, stop):
        seen.append(sorted(path.name for path in tmp_path.glob("*/*")))
        return read(self, layer, start, stop)

    monkeypatch.setattr(Spill, "read", spy)
    xs, batches = _batches(tools)
    result = tools.compare_given(batches, mode="exact", spill_folder=tmp_path)
    expected = sk.cka_matrix([x.double() for x in xs])
    torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)
    assert seen[0] == ["layer0.bin", "layer1.bin"]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_half_precision_files_cost_digits_and_half_the_space(monkeypatch, tools, tmp_path):
    _forced(monkeypatch, (), on_disk=True)
    xs, batches = _batches(tools)
    options = {"mode": "exact", "spill_folder": tmp_path, "spill_dtype": torch.float16}
    result = tools.compare_given(batches, **options)
    expected = sk.cka_matrix([x.double() for x in xs])
    torch.testing.assert_close(result.matrix, expected, atol=1e-3, rtol=0)


def test_the_disk_budget_holds_while_writing(monkeypatch, tools, tmp_path):
    _forced(monkeypatch, (), on_disk=True)
    _, batches = _batches(tools)
    with pytest.raises(ValueError, match="outgrow disk_budget"):
        tools.compare_given(batches, mode="exact", spill_folder=tmp_path, disk_budget=20_000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"spill_folder .* is not a folder"):
        tools.compare_given(batches, mode="exact", spill_folder=tmp_path / "none")


def test_float64_features(monkeypatch, tools):
    _forced(monkeypatch, (1,))
    xs, batches = _batches(tools)
    wide = [[x.double() for x in batch] for batch in batches]
    result = tools.compare_given(wide, mode="exact")
    expected = sk.cka_matrix([x.double() for x in xs])
    torch.testing.assert_close(result.matrix, expected, atol=1e-12, rtol=0)


def test_sequences_of_changing_length_are_refused(tools):
    net = nn.Sequential(nn.Linear(4, 3)).eval()
    sequences = [torch.randn(8, 6, 4), torch.randn(8, 5, 4)]
    with pytest.raises(ValueError, match=r"'0' of model1 has 15 features .* had 18"):
        CKA(net, mode="exact").compare(sequences, progress=False)
    result = CKA(net, mode="exact", tokens="mean").compare(sequences, progress=False)
    assert result.n == 16


def _operations(dims, samples, moments):
    kept = sum(dims[i] for i in moments)
    rest = sum(dims) - kept
    return 2.0 * samples * (kept * kept / 2 + kept * rest) + samples**2 * rest


@pytest.mark.parametrize("samples", [50, 400, 5000, 200_000])
def test_the_plan_takes_the_fewest_operations(samples):
    dims = [300, 16, 64, 2000, 64]
    plan = make_plan(dims, samples, Budget(1 << 40, 1 << 40))
    best = min(
        _operations(dims, samples, moments)
        for k in range(len(dims) + 1)
        for moments in itertools.combinations(range(len(dims)), k)
    )
    assert math.isclose(plan.operations, best)
    assert math.isclose(plan.operations, _operations(dims, samples, plan.moments))


def test_the_plan_stays_in_its_budget():
    dims, samples = [512] * 10 + [50_000] * 10, 20_000
    roomy = make_plan(dims, samples, Budget(1 << 40, 1 << 40))
    assert not roomy.on_disk
    tight = make_plan(dims, samples, Budget(4 << 30, 64 << 30))
    assert tight.on_disk
    assert tight.moment_bytes <= 4 << 30
    assert tight.stored_bytes <= 64 << 30
    with pytest.raises(ValueError, match=r"do not fit into the budget .*Raise memory_budget"):
        make_plan(dims, samples, Budget(1 << 20, 1 << 30))
    shared = make_plan(dims, samples, Budget(1 << 40, 1 << 40), ranks=4)
    assert shared.stored_bytes * 4 == roomy.stored_bytes


def test_kernels_without_moments_are_planned_with_their_passes():
    dims, samples, budget = [16, 64], 5000, Budget(1 << 40, 1 << 40)
    plan = make_plan(dims, samples, budget, has_moments=False, passes=4)
    assert plan.moments == ()
    assert plan.operations == 4 * samples**2 * sum(dims)


def test_the_plan_is_told_without_comparing(net, images, tmp_path):
    loader = images.split(8)
    minibatch = CKA(net).plan(loader)
    assert minibatch.startswith("7 layers, batches of 8: 3.5 KiB of Gram matrices")
    planned = CKA(net, mode="exact", spill_folder=tmp_path).plan(images)
    assert planned.startswith("40 samples in one batch, 7 layers; ")
    assert not any(module._forward_hooks for module in net.modules())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="do not fit into the budget"):
        CKA(net, mode="exact", memory_budget=10, disk_budget=10).plan(images)


def test_the_plan_in_words():
    plan = make_plan([16, 4000], 20_000, Budget(1 << 24, 1 << 30))
    assert plan.describe(20_000, [16, 4000]).split("; ") == [
        "20000 samples in one batch, 2 layers",
        "1 by moments of their features (533.6 KiB of memory)",
        "1 by tiles of Gram matrices of 256 samples (305.2 MiB of features in files)",
        "1.6e+03 billion operations",
    ]
