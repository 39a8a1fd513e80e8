"""CKASparsity: its value and gradient, what it collects, and what it leaves behind."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

import sparsekern
from sparsekern.regularizers import CKASparsity


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("pairs", ["stage", "all"])
@pytest.mark.parametrize("samples", [8, -1])
def test_value_and_gradient_are_the_definition(model, images, tools, estimator, pairs, samples):
    expected, grads = tools.oracle(model, images, samples, estimator=estimator, pairs=pairs)
    reg = CKASparsity(model, beta=0.25, samples=samples, estimator=estimator, pairs=pairs)
    model(images)
    loss = reg()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert abs(loss.item() - 0.25 * expected.item()) < 1e-5
    actual = [None if g is None else g / 0.25 for g in tools.gradients(model)]
    assert tools.relative_error(actual, grads) < 1e-5
    assert abs(reg.last.item() - expected.item()) < 1e-5
    assert not reg.last.requires_grad


def test_it_adds_to_the_task_loss(model, images, tools):
    _, grads = tools.oracle(model, images)
    model(images).square().sum().backward()
    task = tools.gradients(model)
    model.zero_grad()
    reg = CKASparsity(model, beta=1.0)
    (model(images).square().sum() + reg()).backward()
    added = [a - t for a, t in zip(tools.gradients(model), task, strict=True)]
    assert tools.relative_error(added, grads) < 1e-5


def test_float64_models_give_float64(model, images):
    model.double()
    reg = CKASparsity(model)
    for _ in range(2):  # a collecting step, and the zero of an idle one
        model(images.double())
        assert reg().dtype == torch.float64


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: (x, None),
        lambda x: [None, x],
        lambda x: ((x,), x),
        lambda x: {"loss": None, "hidden_states": x},
        lambda x: OrderedDict(last_hidden_state=x, attentions=(x, x)),
    ],
)
def test_structured_outputs_of_sequences(pack, tools):
    """(B, T, C) is flattened per sample, wherever in the output it is the first tensor."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x):
            return pack(torch.tanh(self.linear(x)))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.ModuleList(Layer() for _ in range(3))

        def forward(self, x):
            self.seen = []
            for layer in self.layer:
                x = torch.tanh(layer.linear(layer(x) is not None and x))
                self.seen.append(x[:8])
            return x

    torch.manual_seed(0)
    net = Encoder().double()
    reg = CKASparsity(net, beta=1.0)
    net(torch.randn(9, 4, 5, dtype=torch.float64))
    torch.testing.assert_close(reg(), tools.definition([net.seen]))


@pytest.mark.parametrize("output", [None, "text", torch.tensor(1.0), {"a": None}])
def test_an_output_without_features_is_an_error(output):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x):
            return output

    net = nn.Sequential(Layer(), Layer())
    CKASparsity(net)
    with pytest.raises(TypeError, match="'0' holds no features"):
        net(torch.randn(8, 5))


def test_blocks_must_share_the_batch():
    class Fold(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.shape, self.linear = shape, nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x).reshape(self.shape)

    net = nn.Sequential(Fold((6, 4)), Fold((12, 2)))
    reg = CKASparsity(net)
    net(torch.randn(6, 4))
    with pytest.raises(ValueError, match=r"0, 1 give outputs of \[6, 8\] samples"):
        reg()


def test_in_place_module_after_a_tapped_one(images, tools):
    """The taps see values before an in-place ReLU, and backward neither fails nor is wrong."""

    class PreActivation(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.blocks = nn.Sequential(*(nn.Sequential(conv) for conv in self.convs))
            self.relu = nn.ReLU(inplace)

        def forward(self, x):
            self.seen = []
            for conv in self.blocks:
                y = conv(x)
                if not self.relu.inplace:
                    self.seen.append(y[:8])
                x = self.relu(y)
            return x

    torch.manual_seed(0)
    net = PreActivation(inplace=True)
    exact = copy.deepcopy(net).double()
    exact.relu.inplace = False
    exact(images.double())
    expected = tools.definition([exact.seen])
    expected.backward()
    reg = CKASparsity(net, [["blocks.*"]], beta=1.0)
    out = net(images)
    loss = reg()
    (out.sum() * 0 + loss).backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    assert tools.relative_error(tools.gradients(net), [p.grad for p in exact.parameters()]) < 1e-5


def test_of_a_block_called_twice_the_last_call_counts(images, tools):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = tools.Residual(3, 3), tools.Residual(3, 3)

        def forward(self, x):
            self.seen = [self.a(self.b(self.a(x)))]
            self.seen.append(self.b(self.seen[0]))
            return self.seen[1]

    torch.manual_seed(0)
    net = Shared().double()
    reg = CKASparsity(net, [["a", "b"]], beta=1.0, samples=-1)
    net(images.double())
    torch.testing.assert_close(reg(), tools.definition([net.seen]))


def test_blocks_left_out_by_layer_drop_are_left_out(model, images, tools):
    class Drop(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    model.layer2 = Drop(*model.layer2)
    reg = CKASparsity(model.double(), beta=1.0, samples=-1)
    model(images.double())
    one = model.layer1[0](images.double())
    two = model.layer1[1](one)
    torch.testing.assert_close(reg(), tools.definition([[one, two], [model.layer2[0](two)]]))


def test_a_forward_that_calls_no_block_warns(tools):
    class Idle(tools.SmallNet):
        def forward(self, x):
            return x.sum() * self.fc.weight.sum()

    net = Idle()
    reg = CKASparsity(net)
    net(torch.randn(8, 3, 6, 6))
    with pytest.warns(UserWarning, match=r"called none of layer1\.0"):
        assert reg().item() == 0


# --- life ----------------------------------------------------------------------------------------


def hook_count(model):
    return sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if "hooks" in name and hooks
    )


def test_remove_leaves_no_trace(model, images):
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    reg = CKASparsity(model)
    model(images)
    assert hook_count(model) > 0
    reg.remove()
    reg.remove()
    assert hook_count(model) == 0
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert hook_count(copy.deepcopy(model)) == 0
    pickle.dumps(model)
    with pytest.raises(RuntimeError, match="removed"):
        reg()


def test_it_dies_with_the_block_of_a_with_statement(model, images):
    with CKASparsity(model) as reg:
        model(images)
        assert reg().requires_grad
    assert hook_count(model) == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_an_attached_model_collect_nothing(images, duplicate):
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2)))
    reg = CKASparsity(net, [["0", "1"]], every=1)
    net(images)  # features with a graph are held, and must not be copied
    twin = duplicate(net)
    collector = next(iter(twin._forward_hooks.values())).__self__
    twin(images + 1)
    assert collector is not reg._collector
    assert collector.features == []
    assert reg().requires_grad


def test_two_regularisers_on_one_model(model, images):
    first, second = CKASparsity(model, beta=1.0), CKASparsity(model, beta=1.0, pairs="all")
    model(images)
    alone = first.last
    assert first().item() != second().item()
    assert alone is None
    second.remove()
    model(images)
    first()
    assert first.step == 2


def test_repr(model):
    assert repr(CKASparsity(model)) == (
        "CKASparsity(2 + 2 blocks of SmallNet, beta=0.0001, samples=8, every=5, "
        "estimator='unbiased', pairs='stage', step=0)"
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"samples": 3}, "at least 4 with the unbiased"),
        ({"samples": 1, "estimator": "biased"}, "at least 2 with the biased"),
        ({"samples": 0}, "samples must be"),
        ({"every": 0}, "every must be at least 1"),
        ({"estimator": "debiased"}, "estimator must be"),
        ({"pairs": "both"}, "pairs must be"),
        ({"stages": [["layer1.0"], ["layer2.0"]]}, 'no stage has two blocks.*pairs="all"'),
        ({"stages": [["layer1.0"]], "pairs": "all"}, "name at least two"),
    ],
)
def test_wrong_arguments(model, options, match):
    with pytest.raises(ValueError, match=match):
        CKASparsity(model, **options)
    assert hook_count(model) == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"samples": "8"}, "samples must be a whole number, got '8'"),
        ({"every": 2.5}, r"every must be a whole number, got 2\.5"),
        ({"beta": None}, "beta must be a number, got None"),
    ],
)
def test_arguments_of_another_type(model, options, match):
    with pytest.raises(TypeError, match=match):
        CKASparsity(model, **options)
    with pytest.raises(ValueError, match="beta must be finite, got nan"):
        CKASparsity(model, beta=float("nan"))


def test_model_must_be_a_module():
    with pytest.raises(TypeError, match="got function"):
        CKASparsity(lambda x: x)


def test_it_is_public():
    assert sparsekern.regularizers.CKASparsity is CKASparsity
