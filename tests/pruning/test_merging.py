"""merge_layers: the same outputs from fewer layers, where it is exact, and a reason where not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsekern as sk
from sparsekern.pruning import merge_layers


def nonnegative(*layers):
    with torch.no_grad():
        for layer in layers:
            layer.weight.abs_()
            if layer.bias is not None:
                layer.bias.abs_()


def mlp(width=8, depth=5, activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [nn.Linear(6, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3)).eval()


def check(net, x, merged, **options):
    """Merges, and compares outputs, parameters and the untouched original."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = net(x)
    smaller, report = merge_layers(net, example=x, **options)
    assert report.merged == merged, str(report)
    torch.testing.assert_close(smaller(x), expected, atol=1e-5, rtol=1e-5)
    assert report.error < 1e-5
    assert report.parameters_after == sum(p.numel() for p in smaller.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    if merged and not options.get("allow_growth"):
        assert report.parameters_after < report.parameters_before
    return smaller, report


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU])
def test_linear_chain(activation):
    net = mlp(activation=activation)
    net[1] = nn.ReLU()
    nonnegative(net[2], net[4])
    smaller, report = check(net, torch.randn(9, 6), [("2", "4"), ("4", "6")])
    assert isinstance(smaller[2], nn.Identity)
    assert isinstance(smaller[3], nn.Identity)
    assert "2 was merged into 4" in str(report)


def test_reasons():
    net = mlp()
    nonnegative(net[2])
    _, report = check(net, torch.randn(9, 6), [("2", "4")])
    assert report.kept["0"] == "its input may be negative"
    assert "weights and" in report.kept["4"]
    assert report.kept["8"] == "no activation that is the identity on [0, ∞) follows it alone"


def test_activations_that_bend_above_0():
    for activation in (nn.ReLU6, nn.Sigmoid, nn.Softplus, nn.SELU):
        net = mlp(depth=4, activation=activation)
        nonnegative(net[2])
        check(net, torch.randn(9, 6), [])


def test_the_model_s_input():
    net = mlp(depth=3)
    nonnegative(net[0], net[2])
    x = torch.rand(9, 6)
    check(net, x, [("2", "4")])
    check(net, x, [("0", "2"), ("2", "4")], nonnegative_input=True)


def test_one_negative_entry_is_enough():
    for name in ("weight", "bias"):
        net = mlp(depth=4)
        nonnegative(net[2], net[4])
        with torch.no_grad():
            getattr(net[2], name).flatten()[-1] = -1e-9
        _, report = check(net, torch.randn(9, 6), [("4", "6")])
        counts = "1 weights and 0" if name == "weight" else "0 weights and 1"
        assert report.kept["2"] == f"{counts} biases are negative"


def test_layers_without_bias_and_zeros():
    net = mlp(depth=4)
    net[2] = nn.Linear(8, 8, bias=False)
    net[4] = nn.Linear(8, 8, bias=False)
    nonnegative(net[2])
    with torch.no_grad():
        net[2].weight[:, 3:] = 0
    check(net, torch.randn(9, 6), [("2", "4")])


def convolutions(first, second, norm=False):
    """A non-negative convolution between two ReLUs, and the one that takes it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), first]
    if norm:
        layers.append(nn.BatchNorm2d(first.out_channels))
    return nn.Sequential(*layers, nn.ReLU(), second, nn.BatchNorm2d(second.out_channels)).eval()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kernel_size": 1}, {"kernel_size": 1}),
        ({"kernel_size": 1, "bias": False}, {"kernel_size": 3, "padding": 1}),
        ({"kernel_size": 1, "bias": False}, {"kernel_size": 3, "padding": "same", "dilation": 2}),
        ({"kernel_size": 3, "padding": 1}, {"kernel_size": 1}),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, {"kernel_size": 3}),
        ({"kernel_size": 3, "padding": (1, 0)}, {"kernel_size": (2, 3), "stride": (2, 1)}),
        ({"kernel_size": 1, "padding": 1}, {"kernel_size": (1, 3), "dilation": 3}),
        ({"kernel_size": (1, 5), "padding": (0, 2)}, {"kernel_size": (3, 1), "stride": 3}),
    ],
)
def test_convolutions(first, second, stride):
    net = convolutions(nn.Conv2d(4, 4, stride=stride, **first), nn.Conv2d(4, 5, **second))
    nonnegative(net[2])
    check(net, torch.randn(3, 2, 15, 14), [("2", "4")], allow_growth=True)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"kernel_size": 1}, {"kernel_size": 3, "padding": 1}, "pads its input"),
        ({"kernel_size": 3}, {"kernel_size": 3, "padding": 1}, "pads its input"),
        (
            {"kernel_size": 1, "bias": False, "padding": 1},
            {"kernel_size": 3, "padding": 1},
            "pads its input",
        ),
        ({"kernel_size": 3}, {"kernel_size": 3}, "would have 400 weights, more than the 288"),
        ({"kernel_size": 1}, {"kernel_size": 1, "groups": 2}, "it is a grouped convolution"),
        (
            {"kernel_size": 1, "bias": False},
            {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
            "it does not pad by zeros",
        ),
    ],
)
def test_convolutions_that_stay(first, second, reason):
    net = convolutions(nn.Conv2d(4, 4, **first), nn.Conv2d(4, 4, **second))
    nonnegative(net[2])
    _, report = check(net, torch.randn(3, 2, 15, 14), [])
    assert reason in report.kept["2"]


def statistics(norm, positive=True):
    """Statistics and parameters as after training."""
    with torch.no_grad():
        norm.running_mean.uniform_(-2.0, -1.0)
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(0.5, 1.0)
        norm.bias.uniform_(0.0, 1.0)
        if not positive:
            norm.weight[0] *= -1


@pytest.mark.parametrize("positive", [True, False])
def test_batch_norm_is_folded_first(positive):
    net = convolutions(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 3), norm=True)
    nonnegative(net[2])
    statistics(net[3], positive)
    merged = [("2", "5")] if positive else []
    smaller, report = check(net, torch.randn(3, 2, 9, 9), merged)
    if positive:
        assert isinstance(smaller[3], nn.Identity)
        assert isinstance(smaller[6], nn.BatchNorm2d)  # that of the next layer stays
    else:
        assert report.kept["2"].endswith("are negative, batch norm folded in")


def test_batch_norm_of_linear_layers_and_a_bias_that_becomes_negative():
    net = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    nonnegative(net[2])
    statistics(net[3])
    check(net, torch.randn(9, 6), [("2", "5")])
    with torch.no_grad():
        net[3].running_mean.fill_(5.0)
    check(net, torch.randn(9, 6), [])


class Block(nn.Module):
    """Functional activations, a shortcut, pooling, and a layer whose output is used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 3, 1)
        self.expand = nn.Conv2d(3, 8, 1)
        self.twice = nn.Linear(8, 8)
        self.fc1 = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = F.relu(self.expand(F.relu(self.squeeze(x))) + x)
        x = F.max_pool2d(x, 2).mean(dim=(2, 3)).view(x.size(0), -1)
        y = torch.relu(self.twice(x))
        return self.fc2(self.drop(self.fc1(y).relu())) + y.sum(dim=1, keepdim=True)


def test_any_graph():
    torch.manual_seed(0)
    net = Block().eval()
    nonnegative(net.squeeze, net.twice, net.fc1)
    x = torch.randn(4, 3, 6, 6)
    _, report = check(net, x, [("squeeze", "expand"), ("fc1", "fc2")], allow_growth=True)
    assert report.kept["twice"] == "no linear or convolutional layer follows its activation alone"
    assert report.kept["expand"] == "no activation that is the identity on [0, ∞) follows it alone"
    _, report = check(net, x, [("fc1", "fc2")])
    reason = "expand, which follows, would have 64 weights, more than the 48 of both"
    assert report.kept["squeeze"] == reason


def test_arithmetic_with_negative_numbers():
    class Shifted(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift, self.first, self.second = shift, nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(torch.relu(x) + self.shift)))

    for shift, merged in ((1.0, [("first", "second")]), (-1.0, [])):
        net = Shifted(shift)
        nonnegative(net.first)
        check(net, torch.randn(5, 6), merged)


def test_shared_hooked_tied_and_unknown_layers_stay():
    net = mlp()
    for index in (2, 4, 6):
        nonnegative(net[index])
    net[4].weight = net[6].weight
    net[2].register_forward_hook(lambda module, args, output: None)
    _, report = check(net, torch.randn(9, 6), [])
    assert report.kept["2"] == "it has forward hooks"
    assert report.kept["4"] == "it or its weight is used more than once"

    class Strange(nn.Linear):
        def forward(self, input):
            return -super().forward(input)

    net = mlp(depth=4)
    net[2] = Strange(8, 8)
    nonnegative(net[2])
    _, report = check(net, torch.randn(9, 6), [])
    assert report.kept["2"] == "it is a Strange, of which nothing is known"
    net = mlp(depth=4)
    net = nn.Sequential(*net[:4], *net[2:4], *net[4:]).eval()  # one layer and ReLU in two places
    nonnegative(net[2])
    check(net, torch.randn(9, 6), [])


def test_masked_layers_and_wrappers():
    net = mlp(width=12)
    nonnegative(net[2])
    sk.nn.sparsify(net, 0.5)
    smaller, report = merge_layers(nn.DataParallel(net))
    assert report.merged == [("2", "4")]
    assert isinstance(net[2], sk.nn.MaskedLinear)
    x = torch.randn(9, 6)
    torch.testing.assert_close(smaller(x), net(x), atol=1e-5, rtol=1e-5)


def test_the_rest_of_the_model_trains_on():
    net = mlp().train()
    nonnegative(net[2])
    seen = []

    def refit(model):
        seen.append(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(9, 6)).square().mean().backward()
        optimizer.step()

    smaller, report = merge_layers(net, refit=refit)
    assert seen == [smaller]
    assert smaller.training
    assert smaller[4].weight.grad is not None
    assert report.error is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    net = mlp().to(dtype)
    nonnegative(net[2])
    x = torch.randn(9, 6, dtype=dtype)
    smaller, _ = merge_layers(net)
    assert smaller[4].weight.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2
    torch.testing.assert_close(smaller(x), net(x), atol=tolerance, rtol=tolerance)


def test_a_model_that_cannot_be_traced():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Branching cannot be followed symbolically"):
        merge_layers(Branching())


class Pooling(nn.Module):
    """Pools as long as there is something to pool: its forward looks at shapes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        while min(x.shape[-2:]) > 2:
            x = F.max_pool2d(x, 2)
        return self.second(torch.relu(self.first(x)))


def test_a_model_that_looks_at_shapes():
    net = Pooling().eval()
    nonnegative(net.first)
    with pytest.raises(ValueError, match="with an example, shapes would be known"):
        merge_layers(net)
    check(net, torch.randn(2, 3, 8, 8), [("first", "second")])


def test_layer_sparsity_makes_layers_that_merge():
    """A deep network, trained with the proximal step: layers vanish, and nothing is lost."""
    torch.manual_seed(0)
    net = mlp(width=16, depth=6).train()
    x = torch.randn(256, 6)
    y = torch.stack([x.clamp(min=0).sum(1), x[:, 0].abs(), x[:, 1] * 0.5], dim=1)
    reg = sk.regularizers.LayerSparsity(net, 1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(600):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        reg.prox_(0.01)
    assert loss < 0.2 * y.var()
    check(net, x, [("2", "4"), ("4", "6"), ("6", "8"), ("8", "10")])
