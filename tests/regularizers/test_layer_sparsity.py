"""LayerSparsity: its value, gradient and proximal step by the formulas, over the right layers."""

import pytest
import torch
from torch import nn

from sparsekern.regularizers import LayerSparsity


def mlp(depth=4, width=6):
    torch.manual_seed(0)
    layers = [nn.Linear(5, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


@pytest.mark.parametrize("biases", [True, False])
def test_value_and_gradient(biases):
    net = mlp()
    reg = LayerSparsity(net, [0.5, 2.0], biases=biases)
    assert reg.layers == ["2", "4"]
    loss = reg()
    loss.backward()
    total = 0.0
    for index, strength in ((2, 0.5), (4, 2.0)):
        for tensor in (net[index].weight, net[index].bias)[: 2 if biases else 1]:
            negative = tensor.detach().double().clamp(max=0)
            total += strength * negative.norm().item()
            expected = strength * negative / negative.norm()
            torch.testing.assert_close(tensor.grad.double(), expected, atol=1e-6, rtol=1e-5)
    assert loss.item() == pytest.approx(total, rel=1e-6)
    assert net[0].weight.grad is None
    assert net[6].weight.grad is None
    assert (net[2].bias.grad is None) == (not biases)


def test_proximal_step():
    net = mlp()
    reg = LayerSparsity(net, 0.5)
    before = [net[i].weight.detach().double() for i in (2, 4)]
    with torch.no_grad():
        net[4].weight.mul_(0.01)  # its negative block is shorter than the step
    reg.prox_(0.1)
    norm = before[0].clamp(max=0).norm()
    shrunk = before[0].clamp(min=0) + before[0].clamp(max=0) * (1 - 0.05 / norm)
    torch.testing.assert_close(net[2].weight.double(), shrunk, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(net[4].weight.double(), 0.01 * before[1].clamp(min=0))
    shares = reg.negative()
    assert shares["4"] < shares["2"]


def test_proximal_training_makes_layers_non_negative():
    net = mlp(depth=5)
    reg = LayerSparsity(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    x = torch.randn(64, 5)
    y = x.clamp(min=0).sum(dim=1, keepdim=True).expand(64, 3)
    for _ in range(300):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
        reg.prox_(0.05)
    assert list(reg.negative().values()) == [0, 0, 0]


def test_layers_by_name_and_through_wrappers():
    net = nn.DataParallel(mlp())
    assert LayerSparsity(net, 1.0, layers=["0"]).layers == ["0"]
    with pytest.raises(ValueError, match=r"layers names '9': expected .* which has 0, 2, 4, 6"):
        LayerSparsity(net, 1.0, layers=["9"])


def test_states_dtypes_and_removal():
    net = mlp().bfloat16()
    net[4].float()
    reg = LayerSparsity(net, 1.0)
    reg().backward()
    reg.prox_(0.01)
    assert net[2].weight.grad.dtype == torch.bfloat16
    reg.load_state_dict(reg.state_dict())
    assert repr(reg) == "LayerSparsity(2, 4, strength=1.0)"
    reg.remove()
    for use in (reg, lambda: reg.prox_(0.1)):
        with pytest.raises(RuntimeError, match="was removed from its model"):
            use()


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (-1.0, r"strength must be finite and not negative, got -1\.0"),
        (float("inf"), "strength must be finite and not negative, got inf"),
        ([1.0], "strength has 1 entries for 2 layers"),
    ],
)
def test_errors(strength, message):
    with pytest.raises(ValueError, match=message):
        LayerSparsity(mlp(), strength)


def test_arguments_of_another_type():
    for strength in (None, "1", [1.0, "1"]):
        with pytest.raises(TypeError, match="strength must be a number, got"):
            LayerSparsity(mlp(), strength)
    reg = LayerSparsity(mlp(), 1.0)
    with pytest.raises(TypeError, match="step_size must be a number, got None"):
        reg.prox_(None)
    with pytest.raises(ValueError, match="step_size must be finite and not negative, got nan"):
        reg.prox_(float("nan"))


def test_the_learning_rate_may_be_a_tensor():
    first, second = mlp(), mlp()
    second.load_state_dict(first.state_dict())
    LayerSparsity(first, 1.0).prox_(0.25)
    LayerSparsity(second, 1.0).prox_(torch.tensor(0.25))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_without_inner_layers():
    with pytest.raises(ValueError, match="has 2 linear or convolutional layers, and none between"):
        LayerSparsity(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 1.0)
