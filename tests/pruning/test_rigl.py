"""RigL: when it updates, how much moves, what is dropped and grown; dense gradients only then."""

import math

import pytest
import torch
from torch import nn

import sparsekern as sk


def by_hand(weight, gradient, mask, count):
    """Algorithm 1 with lists: ``count`` smallest kept weights go, the largest gradients come."""
    weight, gradient = weight.flatten().tolist(), gradient.flatten().tolist()
    active = [i for i, kept in enumerate(mask.flatten().tolist()) if kept]
    # Of equal ones the first stay, and the first are grown.
    stay = sorted(active, key=lambda i: (-abs(weight[i]), i))[: len(active) - count]
    free = [i for i in range(len(weight)) if i not in stay]
    grown = sorted(free, key=lambda i: (-abs(gradient[i]), i))[:count]
    new = torch.zeros(len(weight), dtype=torch.bool)
    new[stay + grown] = True
    values = torch.tensor([w if i in stay else 0.0 for i, w in enumerate(weight)])
    return new.view(mask.shape), values.view(mask.shape)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_updates_by_hand(ties, masked):
    net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5))
    if masked:
        net = sk.nn.sparsify(net, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    pruner = sk.pruning.RigL(0.6, end=10, every=3, fraction=0.5).attach(net, optimizer)
    for step in range(1, 15):
        with torch.no_grad():
            for layer in (net[0], net[2]):
                layer.weight.add_(torch.randn_like(layer.weight))
                if ties:
                    layer.weight.copy_(layer.weight.round())
        pruner._hold()
        optimizer.zero_grad()
        x = torch.randn(4, 12)
        net(x.round() if ties else x).square().sum().backward()
        optimizer.step()
        before = {n: net.get_parameter(n).detach().clone() for n in pruner.masks}
        masks = pruner.masks
        pruner.step()
        for name, mask in masks.items():
            expected, values = mask, torch.where(mask, before[name], 0)
            if step in (3, 6, 9):
                share = 0.25 * (1 + math.cos(math.pi * step / 10))
                count = int(share * int(mask.sum()))
                assert count or step == 9
                gradient = net.get_parameter(name).grad
                expected, values = by_hand(values, gradient, mask, count)
            assert torch.equal(pruner.masks[name], expected), (step, name)
            assert torch.equal(net.get_parameter(name), values), (step, name)


def test_dense_gradients_at_update_steps_only():
    net = sk.nn.sparsify(nn.Sequential(nn.Linear(12, 9)), 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = sk.pruning.RigL(0.6, end=10, every=3).attach(net, optimizer)
    for step in range(1, 13):
        optimizer.zero_grad()
        net(torch.randn(4, 12)).square().sum().backward()
        hidden = net[0].weight.grad[~net[0].mask]
        assert bool(hidden.count_nonzero()) == (step in (3, 6, 9))
        optimizer.step()
        pruner.step()


def test_an_update_every_step_begins_with_the_first():
    net = sk.nn.sparsify(nn.Sequential(nn.Linear(12, 9)), 0.0)
    sk.pruning.RigL(0.6, end=10, every=1).attach(net)
    assert net[0].weight_grad == "dense"


def test_momentum_of_what_moves_is_forgotten():
    net = nn.Linear(12, 9)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruner = sk.pruning.RigL(0.6, end=10, every=2).attach(net, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 12)).square().sum().backward()
        before = pruner.masks["weight"]
        optimizer.step()
        pruner.step()
    moved = before ^ pruner.masks["weight"]
    momentum = optimizer.state[net.weight]["momentum_buffer"]
    assert moved.any()
    assert not momentum[moved].count_nonzero()


def test_dense_layers_stay_dense_and_keep_their_weights():
    net = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 1))
    pruner = sk.pruning.RigL(0.9, end=10, every=1).attach(net)
    assert pruner.masks["2.weight"].all()
    values = net[2].weight.detach().clone()
    net(torch.randn(4, 100)).sum().backward()
    pruner.step()
    assert torch.equal(net[2].weight, values)


def test_gradients_that_are_gone():
    net = nn.Linear(12, 9)
    pruner = sk.pruning.RigL(0.6, end=10, every=1).attach(net)
    with pytest.raises(RuntimeError, match=r"weight has no gradient.*before zero_grad"):
        pruner.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 0}, "end and every must be positive, got end=0"),
        ({"end": 5, "every": 0}, "end and every must be positive, got end=5, every=0"),
        ({"end": 5, "fraction": -1}, "fraction must be from 0 to 1, got -1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sk.pruning.RigL(0.8, **options)
