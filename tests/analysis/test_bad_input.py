"""What is refused, warned of, or kept when something is wrong."""

import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsekern import analysis
from sparsekern.analysis import CKA

pytestmark = pytest.mark.filterwarnings("error")


def _loader(images, labels=None, **options):
    tensors = (images,) if labels is None else (images, labels)
    return DataLoader(TensorDataset(*tensors), batch_size=8, **options)


def _two(tools):
    return CKA(tools.ConvNet().eval(), tools.ConvNet().eval(), layers1=["conv1", "fc"])


def test_two_loaders_in_step_are_one(net, tools, images):
    compare = CKA(net, tools.ConvNet().eval(), layers1=["fc"])
    together = compare.compare(_loader(images), progress=False)
    apart = compare.compare(_loader(images), _loader(images), progress=False)
    assert torch.equal(together.matrix, apart.matrix)


def test_two_loaders_of_different_length(tools, images):
    with pytest.raises(ValueError, match="loader1 has 5 batches and loader2 4"):
        _two(tools).compare(_loader(images), _loader(images[:32]), progress=False)
    with pytest.raises(ValueError, match="loader2 ended after 4 batches"):
        _two(tools).compare(
            (x for x in images.split(8)), iter(images[:32].split(8)), progress=False
        )
    with pytest.raises(ValueError, match="batch 5 of loader1 has 8 samples and that of loader2 6"):
        _two(tools).compare(_loader(images), _loader(images[:38]), progress=False)


def test_two_loaders_of_different_order(tools, images):
    labels = torch.arange(40)
    order = torch.arange(39, -1, -1)
    with pytest.raises(
        ValueError, match="batch 1 of loader1 and of loader2 differ in their labels"
    ):
        _two(tools).compare(
            _loader(images, labels), _loader(images[order], labels[order]), progress=False
        )
    batches = [[{"x": images[i], "index": i} for i in order.split(8)] for order in (labels, order)]
    with pytest.raises(ValueError, match="differ in their indices"):
        _two(tools).compare(*batches, progress=False)


def test_two_shuffled_loaders_are_refused_where_nothing_tells_their_order(tools, images):
    with pytest.raises(ValueError, match="a loader is shuffled"):
        _two(tools).compare(_loader(images), _loader(images, shuffle=True), progress=False)


def test_training_mode_is_told(net, images):
    net.train()
    with pytest.warns(UserWarning, match=r"model1 is in training mode: dropout .* BatchNorm"):
        CKA(net).compare([images], progress=False)


class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.used(self.act(x)))


def test_layers_never_called():
    net, x = Partly().eval(), torch.randn(8, 4)
    with pytest.raises(ValueError, match="forward of model1 never called 'spare'"):
        CKA(net, layers1=["used", "spare"]).compare([x], progress=False)
    with pytest.raises(ValueError, match="never called 'spare'"):
        CKA(net, layers1=["spare"]).compare([x], progress=False)
    with pytest.warns(UserWarning, match="never called, and left out: spare"):
        result = CKA(net, layers1=nn.Linear).compare([x], progress=False)
    assert not any(name.startswith("spare") for name in result.rows)


def test_layers_called_twice_have_a_row_for_each_call():
    net, x = Partly().eval(), torch.randn(8, 4)
    with pytest.warns(UserWarning, match="called more than once in a forward: act"):
        result = CKA(net, layers1=["act"]).compare([x], progress=False)
    assert result.rows == ["act#1", "act#2"]
    assert 0 < result.matrix[0, 1] < 1 - 1e-4


def test_a_number_of_calls_that_changes_is_refused():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(x)) if x[0, 0] > 0 else self.a(x)

    first, second = torch.ones(8, 4), -torch.ones(8, 4)
    with pytest.raises(ValueError, match="model1 called 'b' another number of times"):
        CKA(Sometimes().eval()).compare([first, second], progress=False)


@pytest.mark.parametrize("mode", ["minibatch", "exact"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_by_name(net, images, mode, value):
    with torch.no_grad():
        net.conv2.weight[0] = value
    with pytest.raises(ValueError, match="'conv2' of model1 holds values that are not finite"):
        CKA(net, mode=mode).compare([images], progress=False)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("mode", ["minibatch", "exact"])
@pytest.mark.parametrize("n", [1, 3])
def test_too_few_samples(net, images, mode, n):
    with pytest.raises(ValueError, match=rf"the data has {n} sample\(s\) in all"):
        CKA(net, mode=mode).compare([images[:n]], progress=False)


def test_no_batches(net):
    with pytest.raises(ValueError, match="the loader gave no batches"):
        CKA(net).compare([], progress=False)


@pytest.mark.parametrize("mode", ["minibatch", "exact"])
def test_an_interruption_keeps_what_is_done(net, images, mode):
    def batches():
        yield from images[:16].split(8)
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted: the result is that of the first"):
        result = CKA(net, mode=mode).compare(batches(), progress=False)
    assert result.partial
    assert "INTERRUPTED" in result.description
    # One batch is held back, for the last one may have to be merged with it.
    expected = CKA(net, mode=mode).compare([images[:8]], progress=False)
    assert result.n == 8
    assert torch.equal(result.matrix, expected.matrix)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_signal_waits_for_the_batch(net, images):
    def batches():
        for index, batch in enumerate(images.split(8)):
            if index == 3:
                signal.raise_signal(signal.SIGINT)
            yield batch

    before = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="interrupted"):
        result = CKA(net).compare(batches(), progress=False)
    assert result.partial
    assert result.n == 24
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_before_the_first_batch_is_one(net):
    def batches():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        CKA(net).compare(batches(), progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "full"}, ValueError, "mode must be one of 'minibatch', 'exact', got 'full'"),
        ({"estimator": "best"}, ValueError, "estimator must be one of"),
        ({"kernel": "sigmoid"}, ValueError, "kernel must be one of"),
        ({"tokens": "max"}, ValueError, "tokens must be one of 'flatten', 'cls', 'mean'"),
        ({"spatial": "max"}, ValueError, "spatial must be one of"),
        ({"dtype": torch.int32}, TypeError, "dtype must be a floating-point"),
        ({"standard_error": "guess"}, ValueError, "standard_error must be one of"),
        ({"permutations": -1}, ValueError, "permutations must be at least 0"),
        ({"permutations": 9, "mode": "exact"}, ValueError, 'need mode="minibatch"'),
        ({"memory_budget": -1}, ValueError, "memory_budget must be at least 0"),
        ({"distributed": True}, ValueError, "init_process_group"),
    ],
)
def test_wrong_arguments(net, options, error, message):
    with pytest.raises(error, match=message):
        CKA(net, **options)


def test_wrong_models_and_loaders(net, images):
    with pytest.raises(TypeError, match=r"model1 must be a torch.nn.Module, got str"):
        CKA("resnet18")
    with pytest.raises(TypeError, match="model2 must be"):
        CKA(net, lambda x: x)
    with pytest.raises(TypeError, match="a loader must be an iterable of batches"):
        CKA(net).compare(3, progress=False)
    with pytest.raises(ValueError, match="max_samples must be at least 1"):
        CKA(net).compare([images], max_samples=0)


def test_arguments_of_another_type_are_named(net):
    for options, error, told in (
        ({"permutations": "9"}, TypeError, "permutations must be a whole number, got '9'"),
        ({"dtype": "float32"}, TypeError, "dtype must be a floating-point torch.dtype, got 'float"),
        ({"memory_budget": None}, TypeError, "memory_budget must be a number, got None"),
        (
            {"disk_budget": float("nan")},
            ValueError,
            "disk_budget must be at least 0 bytes, got nan",
        ),
    ):
        with pytest.raises(error, match=told):
            analysis.CKA(net, **options)
    with pytest.raises(TypeError, match=r"max_samples must be a whole number, got 1\.5"):
        analysis.CKA(net).compare([], max_samples=1.5)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        analysis.model_layers("resnet18")
    for arguments, error, told in (
        (("song", [64]), ValueError, 'estimator must be "unbiased" or "biased", got \'song\''),
        (("unbiased", 64), TypeError, "batch_sizes must be a list of whole numbers, got 64"),
        (("unbiased", ["64"]), TypeError, "each of batch_sizes must be a whole number"),
        (("biased", [64], 5), TypeError, "features must be two whole numbers, got 5"),
    ):
        with pytest.raises(error, match=told):
            analysis.chance_level(*arguments)
