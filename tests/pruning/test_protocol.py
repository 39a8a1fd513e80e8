"""What every method holds to: the exact sparsity, at every step, whatever trains the network."""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsekern as sk

SPARSITY = 0.8


def optimizer_of(model, kind="sgd", lr=0.05):
    if kind == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, amsgrad=True)


def expected_kept(nets, model, sparsity=SPARSITY):
    total = sum(model.get_parameter(name).numel() for name in nets.WEIGHTS)
    return total - int(sparsity * total)


def assert_held(nets, model, pruner):
    """Pruned weights are exactly 0, in the model or in its masked layers."""
    masks = pruner.masks
    assert list(masks) == nets.WEIGHTS
    kept = 0
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        layer = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(layer, sk.nn.MaskedLinear | sk.nn.MaskedConv2d):
            assert torch.equal(layer.mask, mask)
        assert not layer.weight[~mask].count_nonzero()
        kept += int(mask.sum())
    assert pruner.kept == kept
    total = sum(mask.numel() for mask in masks.values())
    assert pruner.sparsity == 1 - kept / total
    assert pruner.kept_per_layer == {n: (int(m.sum()), m.numel()) for n, m in masks.items()}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_sparsity_is_reached_exactly_and_held_at_every_step(nets, model, method, kind):
    optimizer = optimizer_of(model, kind, 0.05 if kind == "sgd" else 1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    pruner = nets.METHODS[method](SPARSITY)
    assert pruner.attach(model, optimizer) is pruner
    assert_held(nets, model, pruner)
    if method in nets.STATIC:
        assert pruner.kept == expected_kept(nets, model)

    def look():
        assert_held(nets, model, pruner)
        scheduler.step()

    nets.train(model, optimizer, pruner, after_step=look)
    assert_held(nets, model, pruner)
    assert pruner.kept == expected_kept(nets, model)
    assert pruner.steps == nets.EPOCHS * nets.STEPS_PER_EPOCH
    assert pruner.epochs == nets.EPOCHS
    assert all(kept >= 1 for kept, _ in pruner.kept_per_layer.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.conv1.bias.count_nonzero() == 6
    assert model.bn.weight.count_nonzero() == 6


def test_masked_layers_follow_and_train_alike(nets, model, method):
    """sk.nn's layers, converted before: the same masks and, to rounding, the same weights."""
    masked = sk.nn.sparsify(copy.deepcopy(model), 0.0)
    results = []
    for net in (model, masked):
        torch.manual_seed(7)
        optimizer = optimizer_of(net)
        pruner = nets.METHODS[method](SPARSITY).attach(net, optimizer)
        nets.train(net, optimizer, pruner, epochs=3)
        assert_held(nets, net, pruner)
        results.append(pruner)
    plain, fast = results
    for name, mask in plain.masks.items():
        assert torch.equal(mask, fast.masks[name])
    for a, b in zip(model.parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_resumed_training_is_the_same_bit_for_bit(nets, method):
    """Given its state before it is attached, and after."""

    def make():
        net = nets.network()
        return net, optimizer_of(net), nets.METHODS[method](SPARSITY)

    whole, optimizer, pruner = make()
    pruner.attach(whole, optimizer)
    nets.train(whole, optimizer, pruner, epochs=3)
    buffer = io.BytesIO()
    torch.save((whole.state_dict(), optimizer.state_dict(), pruner.state_dict()), buffer)
    nets.train(whole, optimizer, pruner, first=3)

    for order in ("state first", "attached first"):
        resumed, optimizer, again = make()
        buffer.seek(0)
        states = torch.load(buffer, weights_only=True)
        if order == "attached first":
            again.attach(resumed, optimizer)
        resumed.load_state_dict(states[0], strict=order == "attached first")
        optimizer.load_state_dict(states[1])
        again.load_state_dict(states[2])
        if order == "state first":
            again.attach(resumed, optimizer)
        nets.train(resumed, optimizer, again, first=3)
        for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b), (order, name)
        for name, mask in pruner.masks.items():
            assert torch.equal(mask, again.masks[name]), (order, name)
        assert (again.steps, again.epochs) == (pruner.steps, pruner.epochs)


def test_steps_that_a_scaler_skips_are_none(nets, model, method):
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = nets.METHODS[method](SPARSITY).attach(model, optimizer)
    skipped = {1, 5}
    for step in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nets.loss_of(model, nets.batch(step))
        if step in skipped:
            loss = loss * float("inf")
        before = [p.detach().clone() for p in model.parameters()]
        masks = pruner.masks
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
        assert_held(nets, model, pruner)
        if step in skipped:
            assert all(torch.equal(masks[name], mask) for name, mask in pruner.masks.items())
            pairs = zip(before, model.parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    assert pruner.steps == 6


def test_gradient_accumulation(nets, method):
    """Two half batches make one step, and the masks that the whole batch gives."""
    results = []
    for parts in (1, 2):
        net = nets.network().double()
        net.bn.eval()  # its statistics are of a batch
        optimizer = optimizer_of(net)
        pruner = nets.METHODS[method](SPARSITY).attach(net, optimizer)
        for step in range(6):
            optimizer.zero_grad()
            images, labels = nets.batch(step)
            for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                (nets.loss_of(net, (x, y)) / parts).backward()
            optimizer.step()
            pruner.step()
        assert_held(nets, net, pruner)
        results.append((pruner.masks, list(net.parameters())))
    (masks, weights), (others, other_weights) = results
    assert all(torch.equal(mask, others[name]) for name, mask in masks.items())
    torch.testing.assert_close(weights, other_weights)


def test_ranks_of_ddp_have_the_same_masks(nets, run_ranks, tmp_path):
    world = 2
    run_ranks(Path(__file__).with_name("distributed_worker.py"), world, *nets.METHODS)
    for method in nets.METHODS:
        (weights, masks), (others, other_masks) = (
            torch.load(tmp_path / f"{method}{rank}.pt") for rank in range(world)
        )
        total = sum(mask.numel() for mask in masks.values())
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert kept == total - int(0.8 * total), method
        for name, mask in masks.items():
            assert torch.equal(mask, other_masks[name]), (method, name)
        for name, weight in weights.items():
            assert torch.equal(weight, others[name]), (method, name)


def test_names_are_those_of_the_network_inside_of_wrappers(nets, model, method):
    pruner = nets.METHODS[method](SPARSITY)
    pruner.attach(torch.compile(nn.DataParallel(model)), optimizer_of(model))
    assert list(pruner.masks) == nets.WEIGHTS


def test_excluded_layers_stay_dense(nets, model, method):
    optimizer = optimizer_of(model)
    pruner = nets.METHODS[method](SPARSITY)
    getattr(pruner, "base", pruner)._exclude = ["fc"]
    pruner.attach(model, optimizer)
    nets.train(model, optimizer, pruner, epochs=2)
    assert list(pruner.masks) == nets.WEIGHTS[:-1]
    assert model.fc.weight.count_nonzero() == model.fc.weight.numel()
