"""CKASparsity: what a step is, which steps collect, and what resuming goes on with."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekern.regularizers import CKASparsity


def collecting_steps(reg, model, images, steps):
    collected = []
    for _ in range(steps):
        model(images)
        collected.append(reg().requires_grad)
    return collected


def test_every_third_step_collects(model, images):
    reg = CKASparsity(model, every=3)
    assert collecting_steps(reg, model, images, 7) == [True, False, False] * 2 + [True]
    assert reg.step == 7


def test_idle_step_gives_a_zero_without_gradient(model, images):
    reg = CKASparsity(model, every=2)
    collecting_steps(reg, model, images, 1)
    model(images)
    zero = reg()
    assert zero.item() == 0
    assert not zero.requires_grad
    assert zero.device == images.device
    (model(images).sum() + zero).backward()
    zero += 1
    model(images)
    reg()
    model(images)
    assert reg().item() == 0  # a new tensor each time


def test_idle_steps_run_no_operation_more(model, images):
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Count.operations += 1
            return function(*args, **(kwargs or {}))

    def count():
        Count.operations = 0
        with Count():
            model(images)
        return Count.operations

    bare = count()
    reg = CKASparsity(model, every=2)
    assert count() == bare + 2 * 4  # a slice and its copy for each of four blocks
    reg()
    assert count() == bare
    reg()
    model.eval()
    assert count() == bare


def test_gradient_accumulation_counts_calls(model, images, tools):
    """Four forwards for each step, one call after the last: its features, at the same pace."""
    reg = CKASparsity(model, every=2, beta=1.0)
    for step in range(4):
        for micro in range(4):
            batch = images + micro + 10 * step
            model(batch)
        loss = reg()
        assert loss.requires_grad == (step % 2 == 0)
        if step % 2 == 0:
            assert abs(loss.item() - tools.oracle(model, batch)[0].item()) < 1e-5
    assert reg.step == 4


def test_each_micro_batch_may_have_its_call(model, images, tools):
    reg = CKASparsity(model, every=1, beta=1.0)
    expected = [tools.oracle(model, images + micro) for micro in range(2)]
    for micro in range(2):
        model(images + micro)
        reg().backward()
    both = expected[0][1], expected[1][1]
    grads = [None if a is None else a + b for a, b in zip(*both, strict=True)]
    assert tools.relative_error(tools.gradients(model), grads) < 1e-5


def test_a_second_call_gives_zero_and_is_no_step(model, images):
    reg = CKASparsity(model, every=1)
    model(images)
    assert reg().requires_grad
    assert not reg().requires_grad
    assert reg.step == 1


def test_a_call_before_any_forward_warns_once_and_gives_zero(model, images):
    reg = CKASparsity(model)
    with pytest.warns(UserWarning, match="has seen no forward"):
        assert reg().item() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reg().item() == 0
        assert reg.step == 0
        model(images)
        assert reg().requires_grad


@pytest.mark.parametrize("interlude", ["eval", "no_grad", "inference_mode"])
def test_no_collection_outside_of_training(model, images, interlude):
    reg = CKASparsity(model, every=1)
    model(images)  # its features are dropped by the forward that follows
    if interlude == "eval":
        model.eval()
        model(images)
    else:
        with getattr(torch, interlude)():
            model(images)
    assert reg().item() == 0
    assert reg.step == 0
    model.train()
    model(images)
    assert reg().requires_grad


def test_features_are_those_of_the_last_forward_and_are_freed(model, images):
    reg = CKASparsity(model, every=1)
    held = []

    def note():
        held.extend(weakref.ref(feature) for feature in reg._collector.features)

    model(images)
    note()
    model(images + 1)
    gc.collect()
    assert [ref() for ref in held] == [None] * 4
    note()
    loss = reg()
    del loss
    gc.collect()
    assert [ref() for ref in held] == [None] * 8


def test_a_failed_forward_leaves_nothing_to_reuse(model, images, tools):
    reg = CKASparsity(model, every=1, beta=1.0)
    with pytest.raises(RuntimeError):
        model(images[:, :2])
    model(images)
    assert abs(reg().item() - tools.oracle(model, images)[0].item()) < 1e-5


@pytest.mark.parametrize(("estimator", "n"), [("unbiased", 3), ("biased", 1)])
def test_a_short_last_batch_is_skipped(model, images, estimator, n):
    reg = CKASparsity(model, every=1, estimator=estimator)
    model(images[:n])
    assert reg().item() == 0
    assert reg.step == 1
    assert reg.last is None
    model(images[: n + 1])
    assert reg().requires_grad


def test_beta_and_last(model, images):
    reg = CKASparsity(model, every=2, beta=1.0)
    assert reg.last is None
    model(images)
    value = reg().item()
    model(images + 1)
    reg()
    assert reg.last.item() == value
    reg.beta = 0.5
    model(images)
    assert reg().item() == value / 2
    assert reg.last.item() == value


def test_a_resumed_training_is_the_same_bit_for_bit(model, images):
    def train(net, reg, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            (net(images + step).square().mean() + reg()).backward()
            optimizer.step()

    def attach(net):
        return CKASparsity(net, every=3, beta=1.0), torch.optim.SGD(net.parameters(), lr=0.1)

    resumed = copy.deepcopy(model)
    train(model, *attach(model), range(8))
    reg, optimizer = attach(resumed)
    train(resumed, reg, optimizer, range(4))
    state = pickle.loads(pickle.dumps(reg.state_dict()))
    reg.remove()
    reg, optimizer = attach(resumed)
    reg.load_state_dict(state)
    train(resumed, reg, optimizer, range(4, 8))
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(KeyError, match="step"):
        reg.load_state_dict({})
