"""AP: its choice among surviving negative weights, shares, cycles, rewinding, what stays pruned."""

import math

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.pruning import AP, GMP, LTH, RST, SET, OptG, RigL


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 4, bias=False))


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def move(net, pruner, scale=1.0):
    """Stands for an epoch of training; pruned weights stay 0."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    pruner.step()


def by_hand(start, end, alive, kept, share):
    """A cycle with lists: the base's part by magnitude, then AP's among negative survivors."""
    alive = [i for i, a in enumerate(alive.tolist()) if a]
    start, end = start.tolist(), end.tolist()
    removed = len(alive) - kept
    part = min(int(share * removed), int(share * kept / (1 - share)))
    survivors = sorted(alive, key=lambda i: (-abs(end[i]), i))[: kept + part]
    negative = [i for i in survivors if end[i] < 0]
    # Of equal ones the last go first.
    chosen = sorted(negative, key=lambda i: (abs(end[i] - start[i]), -i))[:part]
    mask = torch.zeros(len(end), dtype=torch.bool)
    mask[[i for i in survivors if i not in chosen]] = True
    return mask, chosen


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_cycles_by_hand(share, ties):
    net = network()
    pruner = AP(LTH(0.8, epochs=1, rate=0.4, rewind=None, min_per_layer=0), share=share).attach(net)
    alive = torch.ones(140, dtype=torch.bool)
    start = flat(net.parameters())
    taken = 0
    for cycle in range(4):
        move(net, pruner)
        if ties:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.copy_((2 * parameter).round() / 2)
        end = flat(net.parameters())
        pruner.epoch()
        kept = 140 - math.floor(min(1 - 0.6 ** (cycle + 1), 0.8) * 140)
        alive, chosen = by_hand(start, end, alive, kept, share)
        taken += len(chosen)
        assert torch.equal(flat(pruner.masks.values()), alive), cycle
        assert pruner.pruned_by_ap == taken
        start = flat(net.parameters())
    assert pruner.kept == 140 - math.floor(0.8 * 140)
    assert taken >= 100 * share


def test_too_few_negative_weights_leave_the_rest_to_the_base():
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
        net[0].weight[0, :2] *= -1
        net[0].weight[0, :2] -= 10.0  # magnitude keeps them
    base = LTH(0.5, epochs=1, rate=0.5, rewind=None)
    pruner = AP(base, share=0.2).attach(net)
    values = flat(net.parameters())
    pruner.epoch()
    assert pruner.kept == 70
    assert pruner.pruned_by_ap == 2
    positive = values.clamp(min=0)
    assert torch.equal(flat(pruner.masks.values()), positive >= positive.sort().values[70])


def test_no_layer_is_emptied():
    net = network()
    with torch.no_grad():
        net[0].weight.abs_()
        net[1].weight.copy_(-5 - torch.rand(4, 10))  # all negative, and of great magnitude
    pruner = AP(LTH(0.72, epochs=1, rate=0.72, rewind=None, min_per_layer=3), share=0.5).attach(net)
    with torch.no_grad():
        net[1].weight.sub_(torch.rand(4, 10))
    pruner.epoch()
    assert pruner.kept == 140 - math.floor(0.72 * 140)
    assert pruner.kept_per_layer["1.weight"] == (3, 40)
    assert pruner.pruned_by_ap == 37


@pytest.mark.parametrize("base", [RST, SET])
@pytest.mark.parametrize("cycles", [1, 3])
def test_bases_without_cycles_leave_the_share(base, cycles):
    net = network()
    pruner = AP(base(0.5), share=0.2, cycles=cycles, epochs=2).attach(net)
    spare = int(0.2 * 70 / 0.8)
    assert pruner.kept == 70 + spare
    for epoch in range(1, 10):
        move(net, pruner)
        before, values = flat(pruner.masks.values()), flat(net.parameters())
        pruner.epoch()
        done = min(epoch // 2, cycles)
        assert pruner.kept == 70 + spare * (cycles - done) // cycles
        if base is RST:
            assert not (values[before & ~flat(pruner.masks.values())] >= 0).any()
    assert pruner.pruned_by_ap == spare


def test_what_ap_pruned_is_not_grown_back():
    for base in (SET(0.5, fraction=0.9), RigL(0.5, end=1000, every=1, fraction=0.9)):
        net = network()
        pruner = AP(base, share=0.3).attach(net)
        for epoch in range(6):
            net.zero_grad()
            net(torch.randn(4, 10)).square().sum().backward()
            move(net, pruner)
            pruner.epoch()
            if epoch == 0:
                banned = [b.clone() for b in pruner._banned]
                assert sum(int(b.sum()) for b in banned) > 20
            for ban, mask in zip(banned, pruner.masks.values(), strict=True):
                assert not (ban & mask).any()
        assert pruner.kept == 70


def test_what_ap_pruned_is_not_drawn_again_by_optg():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = AP(OptG(0.5, epochs=8), share=0.3).attach(net, optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        net(torch.randn(4, 10)).square().mean().backward()
        optimizer.step()
        pruner.step()
        banned = [b.clone() for b in pruner._banned]
        pruner.epoch()
        for ban, mask in zip(banned, pruner.masks.values(), strict=True):
            assert not (ban & mask).any()
    assert pruner.pruned_by_ap > 0
    assert pruner.kept == 70


def test_the_first_masks_of_a_gradual_base_are_its_own():
    net = network()
    pruner = AP(GMP(0.8, end=4, every=1, initial=0.5), share=0.3).attach(net)
    size = flat(net.parameters()).abs()
    assert pruner.pruned_by_ap == 0
    assert torch.equal(flat(pruner.masks.values()), size >= size.sort().values[70])


@pytest.mark.parametrize("rewind", [0, 1])
def test_rewinding(rewind):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruner = AP(LTH(0.75, epochs=2, rate=0.5, rewind=None), rewind=rewind).attach(net, optimizer)
    initial = flat(net.parameters())
    for epoch in range(6):
        optimizer.zero_grad()
        net(torch.randn(4, 10)).square().mean().backward()
        optimizer.step()
        pruner.step()
        pruner.epoch()
        if epoch + 1 == rewind:
            initial = flat(net.parameters())
        if epoch in (1, 3):
            assert torch.equal(flat(net.parameters()), initial * flat(pruner.masks.values()))
            assert not optimizer.state


def test_a_share_of_nothing_is_the_base_alone():
    masks = []
    for make in (lambda: LTH(0.8, epochs=1), lambda: AP(LTH(0.8, epochs=1), share=0.0)):
        net = network()
        pruner = make().attach(net)
        for _ in range(9):
            move(net, pruner)
            pruner.epoch()
        masks.append(flat(pruner.masks.values()))
    assert torch.equal(*masks)


def test_the_rest_of_the_protocol_is_the_base_s():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    base = LTH(0.8, epochs=1)
    pruner = AP(base).attach(net, optimizer)
    net(torch.randn(4, 10)).sum().backward()
    optimizer.step()
    pruner.step()
    pruner.epoch()
    pruner.mask_gradients()
    for name, mask in pruner.masks.items():
        assert not net.get_parameter(name).grad[~mask].count_nonzero()
    for name in (
        "sparsity",
        "sparsity_target",
        "total",
        "kept",
        "kept_per_layer",
        "steps",
        "epochs",
    ):
        assert getattr(pruner, name) == getattr(base, name)
    pruner.remove()
    assert not optimizer._optimizer_step_post_hooks


def test_errors():
    with pytest.raises(TypeError, match="base must be a Pruner, got Linear"):
        AP(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="in tandem with another AP"):
        AP(AP(RST(0.5)).base)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\), got 1"):
        AP(RST(0.5), share=1)
    with pytest.raises(ValueError, match="epochs and cycles must be positive, got 0 and 1"):
        AP(RST(0.5), epochs=0)
    with pytest.raises(ValueError, match="rewind must be None or an epoch from 0 on, got -1"):
        AP(RST(0.5), rewind=-1)
    with pytest.raises(ValueError, match="state is that of RST: expected AP"):
        AP(RST(0.5)).load_state_dict(sk.pruning.RST(0.5).attach(network()).state_dict())
