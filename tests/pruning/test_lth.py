"""LTH: rounds, magnitude over all layers, rewinding of everything to the right epoch."""

import copy
import math

import pytest
import torch
from torch import nn

import sparsekern as sk


def move(net, seed):
    """Stands for an epoch of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        for buffer in net.buffers():
            buffer.add_(seed + 1)


@pytest.mark.parametrize("rewind", [0, 1, None])
def test_two_rounds_by_hand(nets, rewind):
    net = nets.network()
    expected = copy.deepcopy(net)
    pruner = sk.pruning.LTH(0.64, epochs=2, rate=0.4, rewind=rewind).attach(net)
    assert pruner.rounds == 2
    sizes = [net.get_parameter(name).numel() for name in nets.WEIGHTS]
    total = sum(sizes)
    alive = torch.ones(total, dtype=torch.bool)
    state = copy.deepcopy(expected.state_dict()) if rewind == 0 else None
    for epoch in range(6):
        move(net, epoch)
        pruner.step()
        pruner.epoch()

        move(expected, epoch)
        mask_of(expected, nets, alive, sizes)
        if rewind is not None and epoch + 1 == rewind:
            state = copy.deepcopy(expected.state_dict())
        if epoch in (1, 3):
            kept = {1: total - math.floor(0.4 * total), 3: total - math.floor(0.64 * total)}[epoch]
            flat = torch.cat([expected.get_parameter(n).detach().flatten() for n in nets.WEIGHTS])
            order = sorted(range(total), key=lambda i: (not alive[i], -abs(flat[i].item())))
            alive = torch.zeros(total, dtype=torch.bool)
            alive[order[:kept]] = True
            if state is not None:
                expected.load_state_dict(state)
            mask_of(expected, nets, alive, sizes)
        assert pruner.round == (epoch + 1) // 2 if epoch < 4 else 2
        assert pruner.round_epoch == (epoch + 1) % 2 if epoch < 4 else epoch - 3
        for (name, a), b in zip(
            net.state_dict().items(), expected.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), (epoch, name)


def mask_of(net, nets, alive, sizes):
    with torch.no_grad():
        for name, part in zip(nets.WEIGHTS, alive.split(sizes), strict=True):
            parameter = net.get_parameter(name)
            parameter.masked_fill_(~part.view(parameter.shape), 0)


@pytest.mark.parametrize(
    ("sparsity", "rate", "rounds"), [(0.488, 0.2, 3), (0.5, 0.5, 1), (0.98, 0.2, 18), (0.1, 0.2, 1)]
)
def test_as_many_rounds_as_the_rate_needs(sparsity, rate, rounds):
    pruner = sk.pruning.LTH(sparsity, epochs=1, rate=rate)
    assert pruner.rounds == rounds
    assert pruner.sparsity_after(rounds) == sparsity
    assert pruner.sparsity_after(rounds - 1) == pytest.approx(1 - (1 - rate) ** (rounds - 1))


def test_rounds_of_equal_rate():
    pruner = sk.pruning.LTH(0.936, epochs=1, rounds=2)
    assert 1 - pruner.sparsity_after(1) == pytest.approx(math.sqrt(0.064))


def test_the_optimizer_begins_anew(nets):
    net = nets.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruner = sk.pruning.LTH(0.5, epochs=1, rounds=1).attach(net, optimizer)
    nets.train(net, optimizer, pruner, epochs=1)
    assert not optimizer.state
    nets.train(net, optimizer, pruner, epochs=2, first=1)
    assert optimizer.state


def test_masks_of_masked_layers_are_not_rewound(nets):
    net = sk.nn.sparsify(nets.network(), 0.0)
    pruner = sk.pruning.LTH(0.5, epochs=1, rounds=1).attach(net)
    pruner.epoch()
    assert torch.equal(net.fc.mask, pruner.masks["fc.weight"])
    assert net.fc.sparsity > 0
    assert not any(name.endswith("mask") for name in pruner.state_dict()["own"]["snapshot"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"epochs": 1, "rate": 1.0}, r"rate must be between 0 and 1, got 1\.0"),
        ({"epochs": 1, "rounds": 0}, "rounds must be positive, got 0"),
        ({"epochs": 2, "rewind": 2}, "rewind must be None or an epoch from 0 to 1, got 2"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sk.pruning.LTH(0.8, **options)


def test_a_single_linear_layer_is_enough():
    pruner = sk.pruning.LTH(0.5, epochs=1).attach(nn.Linear(4, 4))
    pruner.epoch()
    assert pruner.rounds == 4
    assert pruner.kept == 16 - math.floor(0.2 * 16)
