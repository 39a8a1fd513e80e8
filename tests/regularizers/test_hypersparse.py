"""HyperSparse: its gradient by the formula, the growing strength, which weights, resuming."""

import math

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.regularizers import HyperSparse


def formula(weights, sparsity):
    """``∂L/∂w = sign(w) s sech²(s|w|) Σ|w| / Σ tanh(s|w|)``, all in float64."""
    flat = torch.cat([w.detach().double().flatten() for w in weights])
    size = flat.abs()
    scale = 0.6584789484624083 / size.sort().values[math.floor(sparsity * len(size))]
    push = size.sum() / torch.tanh(scale * size).sum() * scale / torch.cosh(scale * size).square()
    return (flat.sign() * push).split([w.numel() for w in weights])


@pytest.mark.parametrize("epochs", [0, 3])
def test_gradient_and_growth(model, images, epochs):
    reg = HyperSparse(model, 0.9, strength=2e-3, growth=1.5)
    for _ in range(epochs):
        reg.epoch()
    assert reg.alpha == pytest.approx(2e-3 * 1.5**epochs)
    loss = reg()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    weights = [p for p in model.parameters() if p.dim() > 1]
    for weight, expected in zip(weights, formula(weights, 0.9), strict=True):
        actual = weight.grad.double().flatten() / reg.alpha
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters() if p.dim() == 1)


def test_it_separates_small_weights_from_large_ones():
    torch.manual_seed(0)
    net = nn.Linear(30, 30)
    nn.init.normal_(net.weight, std=0.1)
    before = net.weight.detach().abs().flatten()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    reg = HyperSparse(net, 0.9, strength=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        reg().backward()
        optimizer.step()
    after = net.weight.detach().abs().flatten()
    lost = before - after
    middle = (before > 0.03) & (before < 0.1)  # smaller ones end up around 0
    assert lost[before > before.quantile(0.99)].mean() < 0.5 * lost[middle].mean()


def test_excluded_and_tied_weights():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].weight = net[0].weight
    reg = HyperSparse(net, 0.5, strength=1.0, exclude="2")
    reg().backward()
    (expected,) = formula([net[0].weight], 0.5)
    torch.testing.assert_close(
        net[0].weight.grad.flatten().double(), expected, atol=1e-5, rtol=1e-4
    )
    assert net[2].weight.grad is None


def test_models_of_several_dtypes():
    net = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4))
    HyperSparse(net, 0.5)().backward()
    assert net[0].weight.grad.dtype == torch.bfloat16
    assert net[1].weight.grad.dtype == torch.float32


def test_together_with_a_pruner_pruned_weights_are_not_pushed(model, images):
    pruner = sk.pruning.RST(0.5).attach(model)
    HyperSparse(model, 0.9)().backward()
    for name, mask in pruner.masks.items():
        assert not model.get_parameter(name).grad[~mask].count_nonzero()


def test_state_and_removal(model):
    reg = HyperSparse(model, 0.9)
    reg.epoch()
    reg.strength = 1e-4
    other = HyperSparse(model, 0.9)
    other.load_state_dict(reg.state_dict())
    assert other.alpha == reg.alpha
    assert "epochs=1" in repr(other)
    reg.remove()
    with pytest.raises(RuntimeError, match="was removed from its model"):
        reg()


@pytest.mark.parametrize(
    ("sparsity", "options", "message"),
    [
        (1.1, {}, r"sparsity must be from 0 to 1, got 1\.1"),
        (0.5, {"strength": -1.0}, r"strength must be finite and not negative, got -1\.0"),
        (0.5, {"growth": 0.0}, r"growth must be finite and positive, got 0\.0"),
    ],
)
def test_errors(model, sparsity, options, message):
    with pytest.raises(ValueError, match=message):
        HyperSparse(model, sparsity, **options)


def test_arguments_of_another_type(model):
    for options, told in (
        ({"sparsity": "half"}, "sparsity must be a number, got 'half'"),
        ({"sparsity": 0.5, "strength": None}, "strength must be a number, got None"),
        ({"sparsity": 0.5, "growth": [1.0]}, r"growth must be a number, got \[1\.0\]"),
    ):
        with pytest.raises(TypeError, match=told):
            HyperSparse(model, **options)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        HyperSparse("resnet", 0.5)


def test_a_model_without_weights():
    with pytest.raises(ValueError, match="model of type ReLU has no linear"):
        HyperSparse(nn.ReLU(), 0.5)
