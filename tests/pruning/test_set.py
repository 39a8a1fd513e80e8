"""SET: drops the weights of each sign that are closest to 0, grows as many at random places."""

import pytest
import torch
from torch import nn

import sparsekern as sk


def linear(values):
    net = nn.Linear(10, 4, bias=False)
    with torch.no_grad():
        net.weight.copy_(values)
    return net


def test_drop_and_grow():
    net = linear(torch.randn(4, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruner = sk.pruning.SET(0.5, fraction=0.4).attach(net, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(3, 10)).square().sum().backward()
        optimizer.step()
        pruner.step()
    before, mask = net.weight.detach().clone(), pruner.masks["weight"]
    pruner.epoch()
    after = pruner.masks["weight"]
    positive = sorted(before[mask & (before >= 0)].tolist())
    negative = sorted(before[mask & (before < 0)].tolist(), reverse=True)
    dropped = positive[: int(0.4 * len(positive))] + negative[: int(0.4 * len(negative))]
    assert dropped
    stays = mask & ~torch.isin(before, torch.tensor(dropped))
    assert int(after.sum()) == int(mask.sum()) == 20
    assert not (stays & ~after).any()
    assert torch.equal(net.weight.detach(), torch.where(stays, before, 0))  # grown ones are 0
    momentum = optimizer.state[net.weight]["momentum_buffer"]
    assert not momentum[after & ~stays].count_nonzero()
    assert momentum[stays].all()


def test_every_free_place_is_grown_alike():
    hits = torch.zeros(40)
    for seed in range(300):
        net = linear(torch.arange(1.0, 41.0).view(4, 10))
        pruner = sk.pruning.SET(0.5, fraction=1.0, seed=seed).attach(net)
        pruner.epoch()
        hits += pruner.masks["weight"].flatten()
    assert hits.sum() == 300 * 20
    assert (hits - 150).abs().max() < 5 * 75**0.5


def test_ties_go_from_the_last_on_and_zeros_count_as_positive():
    values = torch.ones(4, 10)
    values[0] = 0.0
    net = linear(values)
    pruner = sk.pruning.SET(0.5, fraction=0.5, seed=1).attach(net)
    mask = pruner.masks["weight"]
    kept = mask.flatten().nonzero().flatten().tolist()
    zeros = [place for place in kept if place < 10]
    ones = [place for place in kept if place >= 10]
    assert zeros
    order = zeros[::-1] + ones[::-1]  # the first to go
    pruner.epoch()
    after = pruner.masks["weight"].flatten()
    assert after[order[10:]].all()
    assert torch.equal(
        net.weight.flatten().nonzero().flatten(),
        torch.tensor(sorted(place for place in order[10:] if place >= 10)),
    )


def test_dense_layers_stay_dense_and_keep_their_weights():
    net = nn.Sequential(nn.Linear(100, 100), nn.Linear(2, 2))
    values = net[1].weight.detach().clone()
    pruner = sk.pruning.SET(0.9).attach(net)
    pruner.epoch()
    assert pruner.masks["1.weight"].all()
    assert torch.equal(net[1].weight, values)


def test_nothing_moves_after_the_last_epoch():
    net = linear(torch.randn(4, 10))
    pruner = sk.pruning.SET(0.5, epochs=2).attach(net)
    first = pruner.masks["weight"]
    pruner.epoch()
    second = pruner.masks["weight"]
    assert not torch.equal(first, second)
    pruner.epoch()
    assert torch.equal(pruner.masks["weight"], second)


def test_errors():
    with pytest.raises(ValueError, match=r"fraction must be from 0 to 1, got 1\.5"):
        sk.pruning.SET(0.5, fraction=1.5)
