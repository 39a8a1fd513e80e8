"""RST: as many weights a layer as its distribution says, drawn at random by the seed."""

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn.densities import erk_counts


def kept(pruner):
    return [count for count, _ in pruner.kept_per_layer.values()]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95])
def test_erk(nets, model, sparsity):
    shapes = [model.get_parameter(name).shape for name in nets.WEIGHTS]
    pruner = sk.pruning.RST(sparsity).attach(model)
    assert kept(pruner) == erk_counts(shapes, sparsity)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95])
def test_uniform(nets, model, sparsity):
    sizes = [model.get_parameter(name).numel() for name in nets.WEIGHTS]
    pruner = sk.pruning.RST(sparsity, distribution="uniform").attach(model)
    assert sum(kept(pruner)) == sum(sizes) - int(sparsity * sum(sizes))
    for count, size in zip(kept(pruner), sizes, strict=True):
        assert abs(count - (1 - sparsity) * size) <= 1


def test_the_seed_decides_and_global_random_state_is_left_alone(nets):
    def masks(seed):
        return sk.pruning.RST(0.8, seed=seed).attach(nets.network()).masks.values()

    torch.manual_seed(3)
    first = list(masks(1))
    torch.rand(10)
    assert all(map(torch.equal, first, masks(1)))
    assert not all(map(torch.equal, first, masks(2)))
    net = nets.network()
    state = torch.get_rng_state()
    sk.pruning.RST(0.8).attach(net)
    assert torch.equal(state, torch.get_rng_state())


def test_every_place_is_drawn_alike():
    """200 draws of 8 of 40: each place 40 times, with a deviation of sqrt(40 · .8)."""
    hits = torch.zeros(40)
    for seed in range(200):
        hits += sk.pruning.RST(0.8, seed=seed).attach(nn.Linear(8, 5)).masks["weight"].flatten()
    assert hits.sum() == 200 * 8
    assert (hits - 40).abs().max() < 5 * (40 * 0.8) ** 0.5


def test_no_layer_is_emptied_unless_asked():
    net = nn.Sequential(nn.Linear(100, 100), nn.Linear(2, 2))
    assert kept(sk.pruning.RST(0.9995).attach(net))[1] == 1
    pruner = sk.pruning.RST(0.9995, distribution="uniform", min_per_layer=0).attach(net)
    assert kept(pruner) == [6, 0]


def test_other_distributions_are_refused():
    with pytest.raises(ValueError, match="distribution must be one of erk, uniform, got 'global'"):
        sk.pruning.RST(0.5, distribution="global")


@pytest.mark.parametrize(
    "kind", [sk.pruning.RST, sk.pruning.SET, lambda *a, **k: sk.pruning.RigL(*a, end=9, **k)]
)
def test_rescaling_keeps_the_variance_of_outputs(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 300, bias=False))
    x = torch.randn(500, 400)
    dense = net(x).var().item()
    weight = net[0].weight.detach().clone()
    pruner = kind(0.9, rescale=True).attach(net)
    mask = pruner.masks["0.weight"]
    torch.testing.assert_close(net[0].weight.detach(), weight * mask * 10**0.5)
    assert net(x).var().item() == pytest.approx(dense, rel=0.05)


def test_a_resumed_pruner_does_not_rescale_again():
    net = nn.Linear(6, 6)
    state = sk.pruning.RST(0.5, rescale=True).attach(net).state_dict()
    weight = net.weight.detach().clone()
    again = sk.pruning.RST(0.5, rescale=True)
    again.load_state_dict(state)
    again.attach(net)
    assert torch.equal(net.weight.detach(), weight)
