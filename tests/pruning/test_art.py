"""ART: the stop rule on scripted sequences, phases, the candidate, its pruning, the penalty."""

import math

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.pruning import ART, StopRule


def feed(rule, pruned, dense):
    """The number of the epoch at which the rule stops, or None."""
    for epoch, (a, d) in enumerate(zip(pruned, dense, strict=True)):
        if rule.update(a, d):
            return epoch
    return None


# Means of windows of three: (.1+.5+.6)/3 = .4, .6, .7, .667, .6; the candidate is the middle one.
PRUNED = [0.1, 0.5, 0.6, 0.7, 0.8, 0.5, 0.5]


@pytest.mark.parametrize(
    ("dense", "stop", "candidate", "best"),
    [
        ([0.9] * 7, None, 3, 0.7),
        ([0.65] * 7, 4, 3, 0.7),
        ([0.0] * 7, 2, 1, 0.4),  # not before the window is full
        ([0.4] * 7, 3, 2, 0.6),  # equal is not above
        # The best so far counts, not the present mean; and the present dense accuracy.
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.69, 0.9], 5, 3, 0.7),
    ],
)
def test_stop_rule(dense, stop, candidate, best):
    rule = StopRule(3)
    assert feed(rule, PRUNED, dense) == stop
    assert rule.candidate == candidate
    assert rule.best == pytest.approx(best)


def test_equal_means_keep_the_first_candidate():
    rule = StopRule(3)
    assert feed(rule, [0.5] * 6, [0.9] * 6) is None
    assert rule.candidate == 1


def test_a_window_of_one_and_a_resumed_rule():
    rule = StopRule(1)
    assert feed(rule, [0.2, 0.4], [0.9, 0.3]) == 1
    assert rule.candidate == 1
    rule = StopRule(3)
    feed(rule, PRUNED[:4], [0.9] * 4)
    again = StopRule(3)
    again.load_state_dict(rule.state_dict())
    assert again.update(PRUNED[4], 0.65)
    assert again.candidate == 3
    for window in (0, 2):
        with pytest.raises(ValueError, match=f"window must be odd and positive, got {window}"):
            StopRule(window)


def scripted(pruned, dense):
    """An accuracy that follows a script, told apart by whether the model is pruned just now."""
    seen = []

    def accuracy(model):
        zeros = int((model[0].weight == 0).sum())
        script = pruned if zeros else dense
        seen.append(zeros)
        return script[(len(seen) - 1) // 2]

    return accuracy, seen


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10))


def epoch_of(net, art, number):
    """Stands for a training epoch: its number is left in the bias and in a buffer."""
    with torch.no_grad():
        net[0].weight.add_(torch.randn(10, 10, generator=torch.Generator().manual_seed(number)))
        net[0].bias.fill_(number)
        net[1].running_mean.fill_(number)
    art.step()
    art.epoch()


def test_phases_and_candidate():
    accuracy, seen = scripted(PRUNED, [0.65] * 7)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 10)).sum().backward()
    optimizer.step()
    art = ART(0.7, accuracy=accuracy, warmup=2).attach(net, optimizer)
    weights = []
    for number in range(7):
        assert art.phase == ("warm-up" if number < 2 else "regularized")
        assert art.sparsity == 0
        epoch_of(net, art, number)
        weights.append(net[0].weight.detach().clone())
    # It stopped after epoch 4 of the phase, and went back to epoch 3 of it, the 6th in all.
    assert art.phase == "fine-tuning"
    assert art.history == [(p, 0.65) for p in PRUNED[:5]]
    assert net[0].bias.tolist() == [5.0] * 10
    assert net[1].running_mean.tolist() == [5.0] * 10
    assert not optimizer.state
    size = weights[5].abs().flatten()
    mask = (size >= size.sort().values[70]).view(10, 10)
    assert torch.equal(art.masks["0.weight"], mask)
    assert torch.equal(net[0].weight.detach(), weights[5] * mask)
    assert set(seen) == {0, 70}  # measured on the exactly pruned weights, and on the dense ones
    for number in range(7, 9):
        epoch_of(net, art, number)
        assert torch.equal(art.masks["0.weight"], mask)
    assert art.finetuned == 2
    assert len(seen) == 10


def test_without_a_stop_the_best_candidate_is_pruned_at_the_limit():
    accuracy, _ = scripted(PRUNED, [0.9] * 7)
    net = network()
    art = ART(0.7, accuracy=accuracy, warmup=0, max_epochs=6).attach(net)
    for number in range(6):
        assert art.phase == "regularized"
        epoch_of(net, art, number)
    assert art.phase == "fine-tuning"
    assert net[0].bias[0] == 3


def test_a_limit_below_the_window_prunes_the_network_as_it_is():
    accuracy, _ = scripted(PRUNED, [0.9] * 7)
    net = network()
    art = ART(0.7, accuracy=accuracy, warmup=0, max_epochs=2).attach(net)
    for number in range(2):
        epoch_of(net, art, number)
    assert art.phase == "fine-tuning"
    assert net[0].bias[0] == 1


def test_the_reported_training_accuracy_is_taken():
    calls = []
    net = network()
    art = ART(0.7, accuracy=lambda model: calls.append(model) or 0.5, warmup=0).attach(net)
    art.epoch(train_accuracy=0.8)
    assert art.history == [(0.5, 0.8)]
    assert len(calls) == 1
    art.epoch()
    assert art.history[1] == (0.5, 0.5)


def test_penalty_by_phase():
    net = network()
    art = ART(0.7, accuracy=lambda model: 0.1, warmup=1, strength=2e-3, growth=2.0, max_epochs=3)
    with pytest.raises(RuntimeError, match="penalty: the pruner is not attached"):
        art.penalty()
    art.attach(net)
    assert not art.penalty().requires_grad
    art.epoch()
    size = net[0].weight.detach().double().abs()
    scale = 0.6584789484624083 / size.flatten().sort().values[70]
    push = scale / torch.cosh(scale * size) ** 2 * size.sum() / torch.tanh(scale * size).sum()
    expected = net[0].weight.detach().sign() * push
    for epoch in range(3):
        net.zero_grad()
        art.penalty().backward()
        torch.testing.assert_close(
            net[0].weight.grad.double(), 2e-3 * 2**epoch * expected, atol=1e-7, rtol=1e-4
        )
        art.epoch()
    assert art.phase == "fine-tuning"
    assert not art.penalty().requires_grad


def test_the_whole_loop():
    accuracy, _ = scripted(PRUNED, [0.65] * 7)
    net = network()
    art = ART(0.7, accuracy=accuracy, warmup=2).attach(net)
    phases, epochs = [], []

    def train_epoch(given):
        assert given is art
        epochs.append(art.phase)

    art.run(train_epoch, finetune=3, on_phase=phases.append)
    assert phases == ["warm-up", "regularized", "fine-tuning"]
    assert epochs == ["warm-up"] * 2 + ["regularized"] * 5 + ["fine-tuning"] * 3
    assert art.kept == 100 - math.floor(0.7 * 100)
    art.run(train_epoch, finetune=3)  # there is nothing left to do
    assert len(epochs) == 10


def test_only_what_may_become_the_candidate_is_remembered():
    art = ART(0.7, accuracy=scripted([0.1] * 9, [0.9] * 9)[0], warmup=0).attach(network())
    for _ in range(7):
        art.epoch()
    assert sorted(art.state_dict()["own"]["recent"]) == [1, 6]


def test_errors():
    with pytest.raises(ValueError, match="warmup must not be negative, got -1"):
        ART(0.5, accuracy=len, warmup=-1)
    with pytest.raises(ValueError, match="max_epochs must be positive, got 0"):
        ART(0.5, accuracy=len, max_epochs=0)


def test_it_learns_and_keeps_accuracy_when_it_prunes():
    """On separable data: the sparse network is exact, and almost as good as the dense one."""
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x[:, 0] + x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))

    def accuracy(model):
        with torch.no_grad():
            return (model(x).argmax(dim=1) == y).float().mean().item()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    art = sk.pruning.ART(
        0.9, accuracy=accuracy, warmup=5, strength=1e-3, growth=1.1, max_epochs=40
    ).attach(net, optimizer)

    def train_epoch(art):
        for part in torch.randperm(256).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[part]), y[part]) + art.penalty()
            loss.backward()
            optimizer.step()
            art.step()

    art.run(train_epoch, finetune=5)
    assert art.kept == art.total - math.floor(0.9 * art.total)
    assert accuracy(net) > 0.93
