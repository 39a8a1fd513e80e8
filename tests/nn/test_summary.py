"""The summary of masked layers: counts, the example input's part in it, the table."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.ops.masked import choice


class Net(nn.Module):
    """A convolution, a linear layer used twice, one that is not used, and a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.mix = nn.Linear(8, 8)
        self.idle = nn.Linear(3, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.bn(self.conv(x))).flatten(2).mT  # (B, T, 8)
        return self.head(self.mix(torch.relu(self.mix(x))).mean(dim=1))


@pytest.fixture
def model(backend: str) -> Net:
    return sk.nn.sparsify(Net(), 0.7, "uniform", exclude=["head"])


def by_name(result: sk.nn.ModelSummary) -> dict[str, sk.nn.LayerSummary]:
    return {row.name: row for row in result.rows}


def test_without_an_input_what_masks_say(model: Net) -> None:
    result = sk.nn.summary(model)
    rows = by_name(result)
    assert list(rows) == ["conv", "mix", "idle"]
    for name, row in rows.items():
        layer = model.get_submodule(name)
        assert row.nnz == int(layer.mask.sum())
        assert row.sparsity == layer.sparsity
        assert row.shape == tuple(layer.weight.shape)
        assert (row.kernels, row.times, row.forward_speedup) == ((), None, None)
    assert rows["mix"].flops == 2 * rows["mix"].nnz
    assert rows["conv"].flops is None
    assert result.flops is None
    assert result.nnz == sum(row.nnz for row in result.rows)
    total = sum(model.get_submodule(name).mask.numel() for name in rows)
    assert result.sparsity == pytest.approx(1 - result.nnz / total)


def test_flops_are_those_of_one_sample(model: Net) -> None:
    found = []
    for batch in (1, 6):
        result = sk.nn.summary(model, torch.randn(batch, 4, 9, 8), seconds=0)
        rows = by_name(result)
        assert rows["conv"].flops == 2 * rows["conv"].nnz * 5 * 4
        assert rows["mix"].flops == 2 * (2 * rows["mix"].nnz * 5 * 4)  # called twice
        assert rows["idle"].flops == 0
        found.append(result.flops)
    assert found[0] == found[1] == rows["conv"].flops + rows["mix"].flops


def test_a_convolution_counts_what_a_product_would() -> None:
    """Each kept weight once per output pixel: counted on the unfolded image."""
    conv = sk.nn.MaskedConv2d(3, 7, (3, 2), stride=(2, 1), dilation=(1, 2), padding=1)
    conv.set_mask(torch.rand(conv.weight.shape) > 0.6)
    x = torch.randn(2, 3, 11, 9)
    options = {"dilation": (1, 2), "padding": 1, "stride": (2, 1)}
    pixels = nn.functional.unfold(x, (3, 2), **options).shape[-1]
    (row,) = sk.nn.summary(conv, x, seconds=0).rows
    assert row.flops == 2 * int(conv.mask.sum()) * pixels
    assert row.name == ""


def test_times_and_kernels(model: Net, backend: str) -> None:
    rows = by_name(sk.nn.summary(model, torch.randn(6, 4, 9, 8), seconds=0.01))
    for name in ("conv", "mix"):
        row = rows[name]
        assert len(row.kernels) == 3
        assert set(row.kernels) <= (
            {"reference"} if backend == "reference" else {"sparse", "dense"}
        )
        assert min(row.times.forward, row.times.dense_forward) > 0
        assert row.forward_speedup == row.times.dense_forward / row.times.forward
        assert row.training_speedup == row.times.dense_training / row.times.training
    assert (rows["idle"].kernels, rows["idle"].times) == ((), None)


def test_speedups_are_of_the_layer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer slowed down a hundredfold shows it: the masked one is timed, and not the dense."""
    layer = sk.nn.MaskedLinear(16, 16)
    plain = sk.nn.MaskedLinear.forward

    def slow(self: nn.Module, x: Tensor) -> Tensor:
        for _ in range(100):
            x = plain(self, x)
        return x

    monkeypatch.setattr(sk.nn.MaskedLinear, "forward", slow)
    (row,) = sk.nn.summary(layer, torch.randn(4, 16), seconds=0).rows
    assert row.forward_speedup < 0.2
    assert row.training_speedup < 0.2


@pytest.mark.parametrize("weight_grad", ["masked", "dense"])
def test_kernels_are_what_the_choice_says(
    monkeypatch: pytest.MonkeyPatch, weight_grad: str
) -> None:
    asked = []

    def here(part: str, batch: int, *rest: object) -> bool:
        asked.append((part, batch, *rest))
        return part != "input"

    layer = sk.nn.MaskedLinear(6, 4, weight_grad=weight_grad)
    layer.set_mask(torch.rand(4, 6) > 0.5)
    monkeypatch.setattr(choice, "here", here)
    (row,) = sk.nn.summary(layer, torch.randn(2, 5, 6), seconds=0).rows
    nnz = int(layer.mask.sum())
    last = "sparse" if weight_grad == "masked" else "dense"
    assert row.kernels == ("sparse", "dense", last)
    assert asked[0] == ("forward", 10, 4, 6, nnz, torch.float32, 0)
    assert "sparse/dense/" in str(sk.nn.summary(layer, torch.randn(2, 5, 6), seconds=0))


def test_nothing_of_the_model_changes(model: Net) -> None:
    model.head.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    sk.nn.summary(model, torch.randn(6, 4, 9, 8), seconds=0)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_gradients_that_nobody_needs_are_not_timed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    sk.nn.sparsify(model, 0.5)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():  # as in an evaluation script: asked for all the same
        first, second = sk.nn.summary(model, torch.randn(4, 8), seconds=0).rows
    assert (first.training_speedup, first.times.training) == (None, None)
    assert second.training_speedup > 0


def test_inputs_of_several_kinds(model: Net) -> None:
    x = torch.randn(2, 4, 9, 8)
    flops = {sk.nn.summary(model, x, seconds=0).flops}
    flops.add(sk.nn.summary(model, (x,), seconds=0).flops)
    flops.add(sk.nn.summary(model, {"x": x}, seconds=0).flops)
    assert len(flops) == 1


def test_a_compiled_model_is_seen_through(model: Net) -> None:
    x = torch.randn(2, 4, 9, 8)
    plain, compiled = (sk.nn.summary(m, x, seconds=0) for m in (model, torch.compile(model)))
    assert [(r.name, r.flops) for r in compiled.rows] == [(r.name, r.flops) for r in plain.rows]


def test_the_table(model: Net) -> None:
    text = str(sk.nn.summary(model, torch.randn(6, 4, 9, 8), seconds=0))
    lines = text.splitlines()
    assert lines[0].split() == [
        *("layer", "shape", "sparsity", "nnz", "FLOPs", "kernel", "forward", "training")
    ]
    assert [line.split()[0] for line in lines[2:-2]] == ["conv", "mix", "idle"]
    assert lines[-1].startswith("total")
    assert "8×2×3×3" in text
    shorter = str(sk.nn.summary(model))
    assert "kernel" not in shorter.splitlines()[0]
    assert "forward" not in shorter.splitlines()[0]


def test_a_table_of_large_layers_with_long_names_fits_100_columns() -> None:
    times = sk.nn.summary(sk.nn.MaskedLinear(4, 4), torch.randn(2, 4), seconds=0).rows[0].times
    row = sk.nn.LayerSummary(
        name="backbone.encoder.layers.11.feed_forward.projection",
        shape=(16384, 16384, 3, 3),
        sparsity=0.5,
        nnz=1_207_959_552,
        flops=999_400_000_000,
        kernels=("sparse", "dense", "sparse"),
        times=times,
    )
    text = str(sk.nn.ModelSummary((row, row), 2 * 16384**2 * 9))
    assert max(map(len, text.splitlines())) <= 100
    assert ".projection" in text
    assert "1.21G" in text
    assert "999G" in text


def test_errors() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="model has no masked layer"):
        sk.nn.summary(model)
    layer = sk.nn.MaskedLinear(3, 3)
    with pytest.raises(ValueError, match="input holds no tensor: got str"):
        sk.nn.summary(layer, "x")
    with pytest.raises(ValueError, match=r"input of shape \(0, 3\) has no samples"):
        sk.nn.summary(layer, torch.randn(0, 3))
    with pytest.raises(ValueError, match="seconds must not be negative, got -1"):
        sk.nn.summary(layer, torch.randn(2, 3), seconds=-1)
    with pytest.raises(ValueError, match="'' is on the meta device"):
        sk.nn.summary(sk.nn.MaskedLinear(3, 3, device="meta"))
