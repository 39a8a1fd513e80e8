"""Which layers are chosen, and how outputs and batches of every form become features."""

import dataclasses
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.analysis import CKA
from sparsekern.analysis.features import FeatureRule, flatten
from sparsekern.analysis.layers import select_layers

pytestmark = pytest.mark.filterwarnings("error")


def _blocks():
    def block():
        return nn.Sequential(OrderedDict(conv=nn.Conv1d(2, 2, 1), norm=nn.BatchNorm1d(2)))

    return nn.Sequential(
        OrderedDict(stem=nn.Conv1d(1, 2, 1), stage=nn.ModuleList([block(), block()]))
    )


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["stem", "stage.0.conv", "stage.0.norm", "stage.1.conv", "stage.1.norm"]),
        ("stem", ["stem"]),
        ("stage.*", ["stage.0", "stage.1"]),
        ("**.conv", ["stage.0.conv", "stage.1.conv"]),
        (["stage.1.norm", "stem"], ["stem", "stage.1.norm"]),
        ("module.stem", ["stem"]),
        (nn.BatchNorm1d, ["stage.0.norm", "stage.1.norm"]),
        (["stem", nn.BatchNorm1d], ["stem", "stage.0.norm", "stage.1.norm"]),
        (lambda name, module: name.endswith("0"), ["stage.0"]),
        (
            "all",
            [
                "stem",
                "stage.0",
                "stage.0.conv",
                "stage.0.norm",
                "stage.1",
                "stage.1.conv",
                "stage.1.norm",
            ],
        ),
    ],
)
def test_selection(layers, expected):
    assert list(select_layers(_blocks(), layers).modules) == expected


def test_blocks_are_the_residual_blocks():
    net = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, enable_nested_tensor=False
    )
    assert list(select_layers(net, "blocks").modules) == ["layers.0", "layers.1", "layers.2"]


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("stage.0.cov", ValueError, "'stage.0.cov' matches no layer of the model; closest names: "),
        ("stage.0.cov", ValueError, "stage.0.conv"),
        (nn.Conv2d, ValueError, "no Conv2d; it has BatchNorm1d, Conv1d"),
        ("blocks", ValueError, "no residual or transformer blocks"),
        ([], ValueError, "layers1 is empty"),
        ([3], TypeError, "layers1 holds 3"),
        (3, TypeError, "layers1 must be names"),
        (lambda name, module: False, ValueError, "the predicate holds for none"),
    ],
)
def test_wrong_selections(layers, error, message):
    with pytest.raises(error, match=message):
        CKA(
            nn.Sequential(_blocks().stem, nn.Linear(3, 3)) if layers == "blocks" else _blocks(),
            layers1=layers,
        )


class Emits(nn.Module):
    """A layer whose output is made by a function of its input."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    last_hidden_state: torch.Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, "more"),
        lambda x: [x],
        lambda x: OrderedDict(last_hidden_state=x),
        lambda x: {"loss": x.mean(), "last_hidden_state": x},
        lambda x: Output(x.mean(), x),
        lambda x: ((x, x + 1), x),
    ],
)
def test_outputs_of_every_form(make):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Emits(make)

        def forward(self, x):
            self.layer(x)

    x = torch.randn(9, 4)
    result = CKA(Net().eval(), nn.Sequential(nn.Identity()).eval(), layers2="0").compare(
        [x], progress=False
    )
    assert result.matrix[0, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("make", [lambda x: "text", lambda x: x.long(), lambda x: {"a": 1}])
def test_an_output_without_features(make):
    net = nn.Sequential(nn.Linear(4, 4), Emits(make)).eval()
    with pytest.raises(TypeError, match="output of '1' holds no floating-point tensor"):
        CKA(net, layers1=["1"]).compare([torch.randn(6, 4)], progress=False)
    with pytest.warns(UserWarning, match="no features, and left out: 1"):
        result = CKA(net).compare([torch.randn(6, 4)], progress=False)
    assert result.rows == ["0"]


def test_the_first_dimension_must_be_the_samples():
    net = nn.Sequential(Emits(lambda x: x.transpose(0, 1))).eval()
    with pytest.raises(ValueError, match=r"'0' has shape \(4, 6\) and the batch 6 samples"):
        CKA(net).compare([torch.randn(6, 4)], progress=False)


_MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("flatten", lambda x, m: (x * m[:, :, None]).flatten(1)),
        ("cls", lambda x, m: x[:, 0]),
        ("mean", lambda x, m: (x * m[:, :, None]).sum(1) / m.sum(1, keepdim=True)),
        (lambda x, m: x[:, 1] * m[:, 1:2], lambda x, m: x[:, 1] * m[:, 1:2]),
    ],
)
def test_tokens_with_a_padding_mask(tokens, expected):
    x = torch.randn(5, 4, 3)
    rule = FeatureRule(tokens=tokens)
    taken = rule.features("layer", nn.Identity(), x, 5, _MASK)
    torch.testing.assert_close(taken, expected(x, _MASK))


def test_what_stands_at_padded_positions_does_not_count():
    x = torch.randn(5, 4, 3)
    rule = FeatureRule(tokens="mean")
    poisoned = x.masked_fill(~_MASK[:, :, None], torch.nan)
    taken = [rule.features("layer", nn.Identity(), one, 5, _MASK) for one in (x, poisoned)]
    assert torch.equal(*taken)


def test_a_mask_of_another_length_is_not_used():
    x = torch.randn(5, 7, 3)
    taken = FeatureRule().features("pooled", nn.Identity(), x, 5, _MASK)
    assert torch.equal(taken, x.flatten(1))


@pytest.mark.parametrize(
    ("spatial", "expected"),
    [
        ("flatten", lambda x: x.flatten(1)),
        ("mean", lambda x: x.mean((2, 3))),
        ("samples", lambda x: x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])),
        (lambda x: x[:, :, 0, 0], lambda x: x[:, :, 0, 0]),
    ],
)
def test_maps(spatial, expected):
    x = torch.randn(6, 4, 3, 2)
    rule = FeatureRule(spatial=spatial)
    taken = rule.features("layer", nn.Conv2d(1, 1, 1), x, 6, None)
    torch.testing.assert_close(taken, expected(x))


def test_one_dimensional_convolutions_have_channels_second():
    x = torch.randn(6, 4, 5)
    rule = FeatureRule(tokens="mean", spatial="mean")
    torch.testing.assert_close(rule.features("c", nn.Conv1d(1, 1, 1), x, 6, None), x.mean(2))
    torch.testing.assert_close(rule.features("s", nn.Linear(1, 1), x, 6, None), x.mean(1))


def test_channels_last_maps_are_not_copied():
    x = torch.randn(6, 4, 3, 2).to(memory_format=torch.channels_last)
    flat = flatten(x)
    assert flat.data_ptr() == x.data_ptr()
    torch.testing.assert_close(sk.gram(flat), sk.gram(x.contiguous()))


def test_every_position_as_a_sample():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 1)).eval()
    x = torch.randn(5, 1, 4, 4)
    result = CKA(net, spatial="samples").compare([x], progress=False)
    with torch.no_grad():
        maps = [net[0](x), net(x)]
    rows = [m.permute(0, 2, 3, 1).reshape(80, -1).double() for m in maps]
    torch.testing.assert_close(result.matrix, sk.cka_matrix(rows), atol=1e-5, rtol=0)
    uneven = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 2)).eval()
    with pytest.raises(ValueError, match=r"'0' of model1 has 80, '1' of model1 has 45"):
        CKA(uneven, spatial="samples").compare([x], progress=False)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.out = nn.Linear(6, 6)

    def forward(self, input_ids, attention_mask=None):
        assert attention_mask is not None
        return SimpleNamespace(), {"hidden": self.out(self.embed(input_ids))}


def test_dict_batches_keep_their_mask_and_leave_labels_out():
    net = Tokens().eval()
    ids = torch.randint(0, 20, (10, 7))
    mask = torch.arange(7) < torch.randint(1, 8, (10, 1))
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.zeros(10)}
    result = CKA(net, tokens="mean").compare([batch], progress=False)
    assert result.rows == ["embed", "out"]
    with torch.no_grad():
        hidden = [net.embed(ids), net.out(net.embed(ids))]
    pooled = [(h * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True) for h in hidden]
    expected = sk.cka_matrix([p.double() for p in pooled])
    torch.testing.assert_close(result.matrix, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x, "names"],
        lambda x: {"image": x},
        lambda x: {"input": x, "labels": torch.zeros(len(x))},
    ],
)
def test_batches_of_every_form(wrap, net, images):
    expected = CKA(net).compare([images], progress=False).matrix
    assert torch.equal(CKA(net).compare([wrap(images)], progress=False).matrix, expected)


def test_a_batch_without_an_input_says_so(net):
    with pytest.raises(ValueError, match=r"a batch has the keys 'foo', and the model takes x"):
        CKA(net).compare([{"foo": torch.randn(4, 1, 8, 8)}], progress=False)
    with pytest.raises(TypeError, match="no tensor of shape"):
        CKA(net).compare(["text"], progress=False)


def test_inputs_function(net, images):
    result = CKA(net, inputs=lambda batch: batch["x"]["pixels"]).compare(
        [{"x": {"pixels": images}}], progress=False
    )
    assert torch.equal(result.matrix, CKA(net).compare([images], progress=False).matrix)
