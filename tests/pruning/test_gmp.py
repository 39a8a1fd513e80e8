"""GMP: the cubic schedule, exact counts at each event, what is pruned stays pruned."""

import itertools
import math

import pytest
import torch
from torch import nn

import sparsekern as sk


def run(pruner, net, steps):
    """The number of kept weights after each step of a training that moves every weight."""
    kept = [pruner.kept]
    masks = [pruner.masks]
    for _ in range(steps):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        pruner.step()
        kept.append(pruner.kept)
        masks.append(pruner.masks)
    return kept, masks


@pytest.mark.parametrize("initial", [0.0, 0.3])
@pytest.mark.parametrize(("begin", "every", "end"), [(0, 1, 10), (3, 4, 20), (0, 5, 14)])
def test_schedule(initial, begin, every, end):
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    pruner = sk.pruning.GMP(0.9, begin=begin, every=every, end=end, initial=initial).attach(net)
    kept, masks = run(pruner, net, end + 5)
    n = (end - begin) // every
    sparsity = 0.0
    for step in range(end + 6):
        if (step - begin) % every == 0 and begin <= step <= begin + n * every:
            cube = (1 - (step - begin) / (n * every)) ** 3
            sparsity = 0.9 + (initial - 0.9) * cube
        assert abs(kept[step] - 900 * (1 - sparsity)) < 1, step
        assert abs(pruner.sparsity_at(step) - sparsity) < 1e-12, step
    assert kept[-1] == 900 - math.floor(0.9 * 900)
    for before, after in itertools.pairwise(masks):
        assert all(not (after[name] & ~before[name]).any() for name in before)


def test_the_smallest_of_all_layers_go():
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    pruner = sk.pruning.GMP(0.5, begin=1, every=1, end=2).attach(net)
    flat = torch.cat([net[0].weight.detach().flatten(), net[1].weight.detach().flatten()]).abs()
    run(pruner, nn.Identity(), 2)
    kept = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    assert torch.equal(kept, flat >= flat.sort().values[450])


def test_ties_and_zeros_among_the_kept_bring_nothing_back():
    """Kept weights that are 0 go before pruned ones return; equal ones from the last on."""
    net = nn.Linear(4, 5, bias=False)
    with torch.no_grad():
        net.weight.zero_()
        net.weight.flatten()[10:15] = 1.0
    pruner = sk.pruning.GMP(0.8, begin=0, every=1, end=2, initial=0.5).attach(net)
    first = pruner.masks["weight"].flatten()
    assert first.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    with torch.no_grad():
        net.weight.flatten()[10:13] = 0.0
    pruner.step()
    pruner.step()
    assert pruner.masks["weight"].flatten().nonzero().flatten().tolist() == [0, 1, 13, 14]


@pytest.mark.parametrize("min_per_layer", [0, 2])
def test_a_layer_that_would_be_emptied(min_per_layer):
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
    pruner = sk.pruning.GMP(0.9, every=1, end=1, min_per_layer=min_per_layer).attach(net)
    pruner.step()
    assert [kept for kept, _ in pruner.kept_per_layer.values()] == [
        90 - min_per_layer,
        min_per_layer,
    ]


def test_uniform_prunes_each_layer_to_the_schedule():
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    pruner = sk.pruning.GMP(0.9, every=1, end=4, distribution="uniform").attach(net)
    for _ in range(4):
        pruner.step()
        for kept, size in pruner.kept_per_layer.values():
            assert abs(kept - size * (1 - pruner.sparsity_at(pruner.steps))) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 10, "begin": -1}, "begin must not be negative"),
        ({"end": 10, "every": 0}, "every be positive"),
        ({"end": 10, "begin": 5, "every": 6}, r"end be at least begin \+ every; got begin=5"),
        ({"end": 200, "initial": 0.9}, r"initial must be from 0 to the sparsity 0\.8, got 0\.9"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sk.pruning.GMP(0.8, **options)
