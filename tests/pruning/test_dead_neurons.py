"""DeadNeuronRecorder: rates by counting, which forwards count, intervals, resuming, no traces."""

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.pruning import DeadNeuronRecorder


def counted(outputs):
    """Static, dynamic and total rate of a list of ``(n, channels, ...)`` batches, by counting."""
    rates = []
    for output in outputs:
        dead = (output <= 0).transpose(0, 1).flatten(1)
        static = dead.all(dim=1).float().mean().item()
        total = dead.float().mean().item()
        rates.append((static, total - static, total))
    return [sum(parts) / len(rates) for parts in zip(*rates, strict=True)]


def test_rates_are_those_of_the_outputs(nets, model):
    recorder = DeadNeuronRecorder(model)
    assert recorder.names == ["relu1", "relu2", "relu3"]
    outputs = {name: [] for name in recorder.names}
    for name in recorder.names:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs[name].append(output.detach())
        )
    with torch.no_grad():
        model.conv2.weight[:3] = -model.conv2.weight[:3].abs()  # statically dead channels
    for step in range(3):
        model(nets.batch(step)[0])
    rates = recorder.rates()
    for name in recorder.names:
        assert list(rates[name]) == pytest.approx(counted(outputs[name]), abs=1e-6)
    assert rates["relu2"].static >= 3 / 8
    mean = recorder.mean()
    assert mean.total == pytest.approx(sum(r.total for r in rates.values()) / 3)


@pytest.mark.parametrize(("training", "expected"), [(True, 2), (False, 1), (None, 3)])
def test_which_mode_counts(nets, model, training, expected):
    recorder = DeadNeuronRecorder(model, training=training)
    for step, mode in enumerate((True, False, True)):
        model.train(mode)
        model(nets.batch(step)[0])
    assert recorder._calls["relu1"] == expected


def test_every_so_many_forwards(nets, model):
    recorder = DeadNeuronRecorder(model, every=3)
    for step in range(7):
        model(nets.batch(step)[0])
    assert recorder._calls["relu1"] == 3


def test_intervals_and_resuming(nets, model):
    whole, half = DeadNeuronRecorder(model), DeadNeuronRecorder(model)
    model(nets.batch(0)[0])
    for recorder in (whole, half):
        entry = recorder.record(epoch=0)
        assert entry["epoch"] == 0
        assert set(entry["layers"]) == {"relu1", "relu2", "relu3"}
    model(nets.batch(1)[0])
    state = half.state_dict()
    half.remove()
    model(nets.batch(2)[0])
    resumed = DeadNeuronRecorder(model)
    resumed.load_state_dict(state)
    whole.remove()
    images = nets.batch(2)[0]
    model.eval()
    model(images)  # does not count
    model.train()
    model(images)
    assert len(resumed.history) == 1
    assert resumed.record(epoch=1) == whole.record(epoch=1)
    with pytest.raises(RuntimeError, match="no forward to measure"):
        resumed.record()


def test_shared_and_in_place_modules():
    relu = nn.ReLU(inplace=True)
    net = nn.Sequential(nn.Linear(5, 7), relu, nn.Linear(7, 7), relu)
    with DeadNeuronRecorder(net) as recorder:
        net(torch.randn(8, 5)).sum().backward()
        assert recorder.names == ["1"]
        assert recorder._calls["1"] == 2
        assert net[0].weight.grad is not None
    net(torch.randn(8, 5))
    assert recorder._calls["1"] == 2
    assert not relu._forward_hooks


def test_unused_modules_are_left_out():
    net = nn.ModuleDict({"used": nn.ReLU(), "unused": nn.ReLU()})
    recorder = DeadNeuronRecorder(net)
    net["used"](torch.tensor([[-1.0, 1.0], [-1.0, -1.0]]))
    assert recorder.rates() == {"used": (0.5, 0.25, 0.75)}


def test_errors(model):
    with pytest.raises(ValueError, match="every must be positive, got 0"):
        DeadNeuronRecorder(model, every=0)
    with pytest.raises(ValueError, match="Linear has no module of type ReLU, ReLU6 to listen to"):
        DeadNeuronRecorder(nn.Linear(2, 2))


def test_ap_lowers_the_total_rate_of_a_layer():
    """Fewer negative weights: at the same sparsity more pre-activations are above 0."""
    rates = []
    for make in (
        lambda: sk.pruning.LTH(0.5, epochs=1, rate=0.5, rewind=None),
        lambda: sk.pruning.AP(sk.pruning.LTH(0.5, epochs=1, rate=0.5, rewind=None), share=0.4),
    ):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(40, 60), nn.ReLU())
        recorder = DeadNeuronRecorder(net)
        make().attach(net).epoch()
        net(torch.rand(64, 40))
        rates.append(recorder.mean())
    assert rates[1].total < rates[0].total
