"""SNIP and GraSP: their scores by finite differences and explicit Hessians, and no side effects."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sparsekern as sk


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(count=2):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(7, 5, generator=generator, dtype=torch.float64),
            torch.randn(7, 3, generator=generator, dtype=torch.float64),
        )
        for _ in range(count)
    ]


def loss_of(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def flat_loss(net, data):
    """The summed loss as a function of all weights in one vector, biases held."""
    shapes = [net[0].weight.shape, net[2].weight.shape]

    def function(flat):
        first, second = flat.split([30, 18])
        total = 0.0
        for x, y in data:
            hidden = torch.tanh(x @ first.view(shapes[0]).T + net[0].bias.detach())
            out = hidden @ second.view(shapes[1]).T + net[2].bias.detach()
            total = total + (out - y).square().mean()
        return total

    return function, torch.cat([net[0].weight.detach().flatten(), net[2].weight.detach().flatten()])


def best(scores, kept):
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.sort(descending=True, stable=True).indices[:kept]] = True
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_snip(sparsity, masked):
    net = network()
    function, flat = flat_loss(net, batches())
    # The sensitivity is the derivative by a factor c at each weight, here a central difference.
    step = 1e-6
    scores = torch.stack(
        [
            (function(flat * (1 + step * unit)) - function(flat * (1 - step * unit))).abs()
            for unit in torch.eye(len(flat), dtype=torch.float64)
        ]
    )
    if masked:
        net = sk.nn.sparsify(net, 0.0)
    pruner = sk.pruning.SNIP(sparsity, loss=loss_of, batches=iter(batches()), min_per_layer=0)
    pruner.attach(net)
    mask = torch.cat([m.flatten() for m in pruner.masks.values()])
    assert torch.equal(mask, best(scores, 48 - math.floor(sparsity * 48)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_grasp(sparsity, masked):
    net = network()
    function, flat = flat_loss(net, batches())
    gradient = torch.autograd.functional.jacobian(function, flat)
    hessian = torch.autograd.functional.hessian(function, flat)
    scores = -flat * (hessian @ gradient)  # the highest are pruned
    if masked:
        net = sk.nn.sparsify(net, 0.0)
    pruner = sk.pruning.GraSP(sparsity, loss=loss_of, batches=batches(), min_per_layer=0)
    pruner.attach(net)
    mask = torch.cat([m.flatten() for m in pruner.masks.values()])
    assert torch.equal(mask, best(-scores, 48 - math.floor(sparsity * 48)))


def test_grasp_scores_say_how_the_gradient_norm_changes():
    """Removing the weight of highest score raises ``‖g‖²`` most, for small weights."""
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(1e-4)
        net[2].weight.mul_(1e-4)
    function, flat = flat_loss(net, batches())

    def norm(weights):
        return torch.autograd.functional.jacobian(function, weights).square().sum()

    changes = torch.stack([norm(flat * (1 - unit)) - norm(flat) for unit in torch.eye(48).double()])
    pruner = sk.pruning.GraSP(0.5, loss=loss_of, batches=batches(), min_per_layer=0).attach(net)
    mask = torch.cat([m.flatten() for m in pruner.masks.values()])
    assert changes[mask].max() < changes[~mask].min() + 1e-3 * changes.abs().max()


@pytest.mark.parametrize("kind", [sk.pruning.SNIP, sk.pruning.GraSP], ids=["snip", "grasp"])
def test_nothing_else_of_the_model_changes(nets, model, kind):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = kind(0.5, loss=nets.loss_of, batches=[nets.batch(0)]).attach(model)
    for name, value in model.state_dict().items():
        kept = pruner.masks.get(name, torch.ones(()).bool())
        assert torch.equal(value, before[name] * kept), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_buffers_are_put_back_when_the_loss_fails(model):
    def fails(net, batch):
        net(batch)
        raise KeyError("label")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = sk.pruning.SNIP(0.5, loss=fails, batches=[torch.randn(4, 3, 6, 6)])
    for _ in range(2):  # it may be tried again
        with pytest.raises(KeyError):
            pruner.attach(model, optimizer)
        assert model.bn.num_batches_tracked == 0
        assert not optimizer._optimizer_step_post_hooks


def test_layers_that_are_not_used_have_score_0(nets):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.fc = nn.Linear(4, 4), nn.Linear(5, 3)

        def forward(self, x):
            return self.fc(x)

    pruner = sk.pruning.SNIP(0.5, loss=loss_of, batches=batches(1), min_per_layer=2)
    pruner.attach(Net().double())
    assert pruner.kept_per_layer == {"unused.weight": (2, 16), "fc.weight": (14, 15)}


def test_no_batches():
    with pytest.raises(ValueError, match="batches is empty"):
        sk.pruning.SNIP(0.5, loss=loss_of, batches=[]).attach(network())


def test_a_state_needs_no_batches():
    state = sk.pruning.SNIP(0.5, loss=loss_of, batches=batches()).attach(network()).state_dict()
    again = sk.pruning.SNIP(0.5, loss=loss_of, batches=[])
    again.load_state_dict(state)
    again.attach(network())
    assert torch.equal(again.masks["0.weight"], state["masks"]["0.weight"])


class Attentive(nn.Module):
    """Fused attention, which cannot be differentiated twice, between two linear layers."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(5, 12)
        self.outside = nn.Linear(4, 3)

    def forward(self, x):
        query, key, value = self.inside(x)[None].chunk(3, dim=-1)
        return self.outside(nn.functional.scaled_dot_product_attention(query, key, value))[0]


def test_grasp_of_fused_attention():
    torch.manual_seed(0)
    net = Attentive().double()
    weights = (net.inside.weight, net.outside.weight)
    pruner = sk.pruning.GraSP(0.5, loss=loss_of, batches=batches(1)).attach(copy.deepcopy(net))
    with sdpa_kernel(SDPBackend.MATH):
        loss = loss_of(net, batches(1)[0])
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        norm = sum((g * g.detach()).sum() for g in gradients)
        products = torch.autograd.grad(norm, weights)
    scores = torch.cat([(w * h).flatten() for w, h in zip(weights, products, strict=True)])
    mask = torch.cat([m.flatten() for m in pruner.masks.values()])
    assert torch.equal(mask, best(scores.detach(), 36))
