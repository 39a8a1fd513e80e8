"""The protocol's own rules: which weights, how they are held, and what is refused."""

import math
import warnings

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.pruning.optimizers import clear_state


def test_biases_norms_and_embeddings_stay_dense():
    net = nn.Sequential(
        nn.Embedding(9, 4), nn.LayerNorm(4), nn.MultiheadAttention(4, 2), nn.Conv1d(4, 6, 3)
    )
    pruner = sk.pruning.RST(0.5).attach(net)
    assert list(pruner.masks) == ["2.in_proj_weight", "2.out_proj.weight", "3.weight"]
    assert pruner.total == 48 + 16 + 72


def test_a_tied_weight_is_one_weight():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    pruner = sk.pruning.RST(0.5).attach(net)
    assert list(pruner.masks) == ["0.weight"]
    assert (pruner.kept, pruner.total) == (18, 36)


def test_a_tied_weight_of_masked_layers_masks_both():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    net = sk.nn.sparsify(net, 0.0)
    pruner = sk.pruning.RST(0.5).attach(net)
    assert torch.equal(net[0].mask, pruner.masks["0.weight"])
    assert torch.equal(net[2].mask, pruner.masks["0.weight"])


@pytest.mark.parametrize("exclude", [["2"], []])
def test_a_weight_tied_to_a_dense_module_stays_dense(exclude):
    net = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    net[2].weight = net[1].weight if exclude else net[0].weight
    if exclude:
        with pytest.raises(ValueError, match="no linear, convolutional or attention weight"):
            sk.pruning.RST(0.5, exclude=exclude).attach(net)
    else:
        assert list(sk.pruning.RST(0.5).attach(net).masks) == ["1.weight"]


def test_momentum_of_what_is_pruned_is_forgotten():
    net = nn.Linear(10, 10)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, amsgrad=True)
    net(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    mask = sk.pruning.RST(0.5).attach(net, optimizer).masks["weight"]
    state = optimizer.state[net.weight]
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert not state[name][~mask].count_nonzero()
        assert state[name][mask].all()
    assert optimizer.state[net.bias]["exp_avg"].all()
    assert state["step"] == 1


def test_clear_state_needs_no_optimizer_and_no_state():
    weight = nn.Parameter(torch.ones(3))
    clear_state(None, weight, torch.ones(3, dtype=torch.bool))
    clear_state(torch.optim.SGD([weight], 0.1), weight, torch.ones(3, dtype=torch.bool))


def test_neither_nan_nor_inf_survives_under_a_mask():
    net = nn.Linear(10, 10)
    pruner = sk.pruning.RST(0.5).attach(net)
    with torch.no_grad():
        net.weight.masked_fill_(~pruner.masks["weight"], torch.nan)
    pruner.step()
    assert net.weight.isfinite().all()


def test_mask_gradients_leaves_those_of_kept_weights():
    net = nn.Linear(10, 10)
    pruner = sk.pruning.RST(0.5).attach(net)
    pruner.mask_gradients()  # there are none yet
    net(torch.ones(1, 10)).sum().backward()
    pruner.mask_gradients()
    assert torch.equal(net.weight.grad.bool(), pruner.masks["weight"])
    assert net.bias.grad.all()


def test_another_optimizer(nets, model, method):
    """A fresh one in the middle: it is watched, the old one no more."""
    old = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = nets.METHODS[method](0.8).attach(model, old)
    nets.train(model, old, pruner, epochs=2)
    new = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner.set_optimizer(new)
    assert not old._optimizer_step_post_hooks
    nets.train(model, new, pruner, first=2)
    assert pruner.steps == nets.EPOCHS * nets.STEPS_PER_EPOCH
    assert pruner.kept == pruner.total - int(0.8 * pruner.total)
    for name, mask in pruner.masks.items():
        assert not model.get_parameter(name)[~mask].count_nonzero()


def test_an_optimizer_that_never_steps_is_told():
    net = nn.Linear(4, 4)
    pruner = sk.pruning.RST(0.5).attach(net, torch.optim.SGD(net.parameters(), lr=0.1))
    for _ in range(99):
        pruner.step()
    with pytest.warns(UserWarning, match=r"has not stepped in 100 .* with set_optimizer"):
        pruner.step()
    assert pruner.steps == 0


class Attention(nn.Module):
    """Attention, 1d convolution, layer norm: other weights than images have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.conv(x).transpose(1, 2))
        return self.fc((x + self.attention(x, x, x, need_weights=False)[0]).mean(dim=1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: sk.pruning.RigL(0.7, end=20, every=2),
        lambda: sk.pruning.GMP(0.7, end=8, every=2),
        lambda: sk.pruning.OptG(0.7, epochs=5),
        lambda: sk.pruning.AP(sk.pruning.SET(0.7)),
    ],
    ids=["rigl", "gmp", "optg", "ap-set"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_attention_and_compiled_models(make, compiled):
    net = Attention()
    model = torch.compile(net, backend="aot_eager") if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    pruner = make().attach(model, optimizer)
    assert "attention.in_proj_weight" in pruner.masks
    for _epoch in range(5):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(6, 4, 5)).square().mean().backward()
            optimizer.step()
            pruner.step()
            for name, mask in pruner.masks.items():
                assert not net.get_parameter(name)[~mask].count_nonzero()
        pruner.epoch()
    assert pruner.kept == pruner.total - int(0.7 * pruner.total)
    assert net.norm.weight.count_nonzero() == 8


def test_removed_pruners_hold_no_hook():
    net = nn.Linear(10, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = sk.pruning.RST(0.5).attach(net, optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    pruner.remove()
    assert len(optimizer._optimizer_step_post_hooks) == 0


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_a_model_of_several_dtypes(model, distribution):
    model.conv2.bfloat16()
    pruner = sk.pruning.RST(0.8, distribution=distribution).attach(model)
    assert model.conv2.weight.dtype == torch.bfloat16
    assert pruner.kept == pruner.total - int(0.8 * pruner.total)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsities_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        sk.pruning.RST(sparsity)


def test_what_an_attached_pruner_refuses():
    net = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"model must be .*, got SGD"):
        sk.pruning.RST(0.5).attach(optimizer, net)
    with pytest.raises(TypeError, match="Optimizer or None, got str"):
        sk.pruning.RST(0.5).attach(net, "sgd")
    with pytest.raises(ValueError, match="exclude holds a Linear that is not in the model"):
        sk.pruning.RST(0.5, exclude=[nn.Linear(4, 4)]).attach(net)
    snip = sk.pruning.SNIP(0.5, loss=lambda model, x: model(x), batches=[torch.ones(2, 4)])
    with pytest.raises(ValueError, match=r"got a tensor of shape \(2, 4\)"):
        snip.attach(net, optimizer)


def test_an_optimizer_of_another_model_is_told():
    net, other = nn.Linear(4, 4), nn.Linear(4, 4)
    pruner = sk.pruning.OptG(0.5, epochs=3)
    with pytest.warns(UserWarning, match="trains none of the 1 weights that are pruned") as found:
        pruner.attach(net, torch.optim.SGD(other.parameters(), lr=0.1))
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.set_optimizer(torch.optim.SGD(net.parameters(), lr=0.1))


def test_errors():
    net = nn.Linear(4, 4)
    pruner = sk.pruning.RST(0.5)
    for name in ("step", "epoch", "state_dict"):
        with pytest.raises(RuntimeError, match=f"{name}: the pruner is not attached"):
            getattr(pruner, name)()
    with pytest.raises(RuntimeError, match="sparsity: the pruner is not attached"):
        _ = pruner.sparsity
    with pytest.raises(ValueError, match="model of type ReLU has no linear"):
        pruner.attach(nn.ReLU())
    with pytest.raises(ValueError, match="on the meta device"):
        pruner.attach(nn.Linear(4, 4, device="meta"))
    with pytest.raises(ValueError, match="exclude names 'head', and the model has no module"):
        sk.pruning.RST(0.5, exclude="head").attach(net)
    with pytest.raises(ValueError, match="leaves 2 of 32 weights, and 2 layers are to keep 2 each"):
        sk.pruning.RST(0.95, min_per_layer=2).attach(nn.Sequential(net, nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="min_per_layer must not be negative, got -1"):
        sk.pruning.RST(0.5, min_per_layer=-1)
    pruner.attach(net)
    with pytest.raises(RuntimeError, match="attached already"):
        pruner.attach(net)


def test_states_of_others_are_refused():
    state = sk.pruning.RST(0.5).attach(nn.Linear(4, 4)).state_dict()
    with pytest.raises(ValueError, match=r"RST at sparsity 0\.5: expected RST at 0\.6"):
        sk.pruning.RST(0.6).load_state_dict(state)
    other = sk.pruning.RST(0.5)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"masks of weight: expected those of 0\.weight"):
        other.attach(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"mask of weight has shape \(4, 4\): expected \(4, 5\)"):
        sk.pruning.RST(0.5).attach(nn.Linear(5, 4)).load_state_dict(state)


def test_a_pruner_without_a_metric():
    with pytest.raises(TypeError, match="abstract class Pruner"):
        sk.pruning.Pruner(0.5)


WRONG_TYPES = [
    (lambda: sk.pruning.RST("0.5"), ValueError, r"sparsity must be in \[0, 1\), got '0\.5'"),
    (lambda: sk.pruning.RST(0.5, seed="a"), TypeError, "seed must be a whole number, got 'a'"),
    (lambda: sk.pruning.RST(0.5, min_per_layer=0.5), TypeError, r"min_per_layer must be .* 0\.5"),
    (lambda: sk.pruning.SET(0.5, fraction=None), TypeError, "fraction must be a number, got None"),
    (lambda: sk.pruning.RigL(0.5, end=math.nan), ValueError, "end must be a number, got nan"),
    (lambda: sk.pruning.GMP(0.5, end="9"), TypeError, "end must be a number, got '9'"),
    (lambda: sk.pruning.LTH(0.5, epochs=2, rounds=1.5), TypeError, r"rounds must be .* 1\.5"),
    (lambda: sk.pruning.LTH(0.5, epochs=None), TypeError, "epochs must be a number, got None"),
    (lambda: sk.pruning.OptG(0.5, epochs="8"), TypeError, "epochs must be a number, got '8'"),
    (lambda: sk.pruning.ART(0.5, accuracy=0.9), TypeError, r"accuracy must be a function .* 0\.9"),
    (
        lambda: sk.pruning.ART(0.5, accuracy=len, growth=0),
        ValueError,
        "growth must be finite and positive, got 0",
    ),
    (lambda: sk.pruning.SNIP(0.5, loss=1, batches=[]), TypeError, "loss must be a function of"),
    (
        lambda: sk.pruning.AP(sk.pruning.RST(0.5), cycles=1.5),
        TypeError,
        r"cycles must be a whole number, got 1\.5",
    ),
    (
        lambda: sk.pruning.DeadNeuronRecorder(nn.ReLU(), every=None),
        TypeError,
        "every must be a whole number, got None",
    ),
    (lambda: sk.pruning.RST(0.5).attach("net"), TypeError, "model must be .*, got str"),
]


@pytest.mark.parametrize(("make", "error", "told"), WRONG_TYPES)
def test_arguments_of_another_type_are_named(make, error, told):
    with pytest.raises(error, match=told):
        make()
