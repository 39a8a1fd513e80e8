"""OptG: scores, weights and masks by the formulas, over whole trainings."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import sparsekern as sk

EPOCHS, STEPS = 16, 5


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 4, generator=generator, dtype=torch.float64)


def rate(step):
    return 0.05 * (1 + math.cos(math.pi * step / (EPOCHS * STEPS)))


def simulate(sparsity, momentum, weight_decay, score_momentum):
    """All of it by hand: dense weights, masks in the forward, scores as the formulas say."""
    net = network()
    names = ["0.weight", "2.weight"]
    values = {name: p.detach().clone() for name, p in net.named_parameters()}
    speed = {name: torch.zeros_like(v) for name, v in values.items()}
    masks = {name: torch.ones_like(values[name], dtype=torch.bool) for name in names}
    scores = {name: torch.zeros_like(values[name]) for name in names}
    score_speed = {name: torch.zeros_like(values[name]) for name in names}
    history = []
    for epoch in range(EPOCHS):
        gate = 1 / (1 + math.exp(-(epoch - EPOCHS / 2)))
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            used = {n: v * masks.get(n, 1) for n, v in values.items()}
            used = {n: v.clone().requires_grad_() for n, v in used.items()}
            x, y = batch(step)
            loss = (functional_call(net, used, x) - y).square().mean()
            gradients = dict(zip(used, torch.autograd.grad(loss, used.values()), strict=True))
            for name in names:
                score_speed[name] = (
                    score_momentum * score_speed[name] + values[name] * gradients[name]
                )
                scores[name] = scores[name] - rate(step) * gate * score_speed[name]
            for name, value in values.items():
                push = gradients[name] * masks.get(name, 1) + weight_decay * value
                speed[name] = momentum * speed[name] + push
                values[name] = value - rate(step) * speed[name]
        if epoch + 1 < EPOCHS:
            last = epoch + 1 == EPOCHS - 1
            share = sparsity / (1 + math.exp(-(epoch + 1 - EPOCHS / 2))) if not last else sparsity
            flat = torch.cat([scores[name].flatten() for name in names])
            kept = len(flat) - math.floor(share * len(flat))
            threshold = flat.sort(descending=True).values[kept - 1]
            masks = {name: scores[name] >= threshold for name in names}
        history.append(
            ({n: v * masks.get(n, 1) for n, v in values.items()}, dict(scores), dict(masks))
        )
    return history


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("momentum", "weight_decay", "score_momentum"), [(0.0, 0.0, 0.0), (0.9, 1e-2, 0.9)]
)
def test_the_whole_training_by_hand(masked, momentum, weight_decay, score_momentum):
    expected = simulate(0.8, momentum, weight_decay, score_momentum)
    net = network()
    if masked:
        net = sk.nn.sparsify(net, 0.0)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=1.0, momentum=momentum, weight_decay=weight_decay
    )
    pruner = sk.pruning.OptG(0.8, epochs=EPOCHS, momentum=score_momentum, min_per_layer=0)
    pruner.attach(net, optimizer)
    for epoch in range(EPOCHS):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            x, y = batch(step)
            (net(x) - y).square().mean().backward()
            optimizer.step()
            pruner.step()
        pruner.epoch()
        values, scores, masks = expected[epoch]
        for name, mask in masks.items():
            assert torch.equal(pruner.masks[name], mask), (epoch, name)
            torch.testing.assert_close(pruner.scores[name], scores[name])
        for name, value in values.items():
            torch.testing.assert_close(net.get_parameter(name).detach(), value)
    assert pruner.kept == 90 - math.floor(0.8 * 90)
    revived = [
        masks["0.weight"] & ~before["0.weight"]
        for (_, _, before), (_, _, masks) in itertools.pairwise(expected)
    ]
    assert any(mask.any() for mask in revived)  # some weights came back, with their values


def test_without_momentum_scores_are_the_sum():
    """``s = -Σ_t η_s W⊙g``, of removed and kept weights alike, while masks change."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = sk.pruning.OptG(0.8, epochs=EPOCHS, momentum=0.0).attach(net, optimizer)
    total = torch.zeros_like(net[0].weight)
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            optimizer.zero_grad()
            x, y = batch(epoch * STEPS + step)
            (net(x) - y).square().mean().backward()
            whole = pruner.state_dict()["own"]["weights"][0]
            total -= 0.1 / (1 + math.exp(-(epoch - EPOCHS / 2))) * whole * net[0].weight.grad
            optimizer.step()
            pruner.step()
        pruner.epoch()
    torch.testing.assert_close(pruner.scores["0.weight"], total)


def test_equal_scores_stay_dense():
    net = network()
    pruner = sk.pruning.OptG(0.8, epochs=3).attach(net, torch.optim.SGD(net.parameters(), lr=0.1))
    pruner.epoch()
    assert pruner.sparsity == 0
    pruner.epoch()
    assert pruner.sparsity == 0


def test_schedule():
    pruner = sk.pruning.OptG(0.9, epochs=100)
    for epoch in range(100):
        assert pruner.sparsity_at(epoch) == pytest.approx(
            0.9 / (1 + math.exp(50 - epoch)), rel=1e-9
        )
    short = sk.pruning.OptG(0.9, epochs=4)
    assert [short.sparsity_at(epoch) for epoch in (3, 4)] == [0.9, 0.9]


def test_each_group_has_its_rate():
    net = network()
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": 0.1}, {"params": [net[2].bias], "lr": 0.3}], lr=1.0
    )
    pruner = sk.pruning.OptG(0.5, epochs=2, momentum=0.0).attach(net, optimizer)
    x, y = batch(0)
    (net(x) - y).square().mean().backward()
    push = net[0].weight.detach() * net[0].weight.grad
    optimizer.step()
    pruner.step()
    torch.testing.assert_close(pruner.scores["0.weight"], -0.1 / (1 + math.e) * push)
    assert not pruner.scores["2.weight"].count_nonzero()  # the optimizer does not train it


def test_fused_optimizers_with_a_scaler():
    """They get scaled gradients and unscale them inside; a skipped step moves no score."""
    scores = []
    for fused in (False, True):
        net = network().float()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        pruner = sk.pruning.OptG(0.5, epochs=3).attach(net, optimizer)
        for step in range(6):
            optimizer.zero_grad()
            x, y = batch(step)
            loss = (net(x.float()) - y.float()).square().mean()
            scaler.scale(loss * float("inf") if step == 2 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            pruner.step()
            if step == 3:
                pruner.epoch()
        assert pruner.steps == 5
        scores.append((pruner.scores["0.weight"], net[0].weight.detach()))
    torch.testing.assert_close(scores[0], scores[1])
    assert scores[0][0].isfinite().all()


def test_hooks_are_removed():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = sk.pruning.OptG(0.5, epochs=3).attach(net, optimizer)
    pruner.remove()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_errors():
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got NoneType"):
        sk.pruning.OptG(0.5, epochs=3).attach(network())
    with pytest.raises(ValueError, match=r"epochs must be at least 2.* got 1"):
        sk.pruning.OptG(0.5, epochs=1)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1\.0"):
        sk.pruning.OptG(0.5, epochs=3, momentum=1.0)
    with pytest.raises(RuntimeError, match="need the gradients of removed weights"):
        sk.pruning.OptG(0.5, epochs=3).mask_gradients()
