"""CKA over batches against the definition, and the traps that other tools fall into."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsekern as sk
from sparsekern.analysis import CKA, model_layers
from sparsekern.analysis.collective import Team
from sparsekern.analysis.layers import select_layers
from sparsekern.analysis.minibatch import MinibatchEngine

pytestmark = pytest.mark.filterwarnings("error")


def test_is_hsic_summed_over_batches_and_divided_once(tools):
    batches = [tools.correlated(n, (5, 40, 300), seed) for seed, n in enumerate((16, 24, 9))]
    result = tools.compare_given(batches)
    torch.testing.assert_close(result.matrix, tools.minibatch_oracle(batches), atol=1e-5, rtol=0)
    assert result.matrix.dtype == torch.float64
    assert (result.matrix.diagonal() - 1).abs().max() < 1e-15
    assert (result.n, result.batches) == (49, 3)
    mean_of_ckas = torch.stack([sk.cka_matrix(xs) for xs in batches]).mean(dim=0).double()
    assert (mean_of_ckas - result.matrix).abs().max() > 1e-2  # not the same thing


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize(
    "kernel", ["linear", "cosine", sk.RBF(0.7), sk.RBF(bandwidth=3.0), sk.Polynomial(2, 1.0)]
)
def test_one_batch_is_cka_matrix(kernel, estimator, tools, backend):
    xs = tools.correlated(20, (6, 30), 1)
    result = tools.compare_given([xs], kernel=kernel, estimator=estimator)
    exact = sk.cka_matrix([x.double() for x in xs], kernel=kernel, estimator=estimator)
    torch.testing.assert_close(result.matrix, exact, atol=2e-5, rtol=0)


def test_two_models_and_selected_layers(net, tools, images):
    other = tools.ConvNet().eval()
    loader = DataLoader(TensorDataset(images, torch.zeros(40)), batch_size=8)
    result = CKA(net, other, layers1=["conv1", "fc"], layers2=nn.BatchNorm2d).compare(
        loader, progress=False
    )
    assert result.rows == ["conv1", "fc"]
    assert result.columns == ["bn1", "bn2"]
    assert not result.same_model
    batches = []
    for x in images.split(8):
        with torch.no_grad():
            conv1 = net.conv1(x)
            fc = net(x)
            bn1 = other.bn1(other.conv1(x))
            bn2 = other.bn2(other.conv2(bn1.relu()))
        batches.append([conv1, fc, bn1, bn2])
    expected = tools.minibatch_oracle(batches)[:2, 2:]
    torch.testing.assert_close(result.matrix, expected, atol=1e-5, rtol=0)


def test_an_in_place_relu_does_not_change_the_layer_before_it(tools, images):
    torch.manual_seed(3)
    in_place = tools.ConvNet(inplace=True).eval()
    copying = tools.ConvNet(inplace=False).eval()
    copying.load_state_dict(in_place.state_dict())
    results = [
        CKA(net, layers1=["bn1", "relu1"]).compare([images], progress=False).matrix
        for net in (in_place, copying)
    ]
    assert torch.equal(*results)
    assert results[0][0, 1] < 0.97


def test_one_shuffled_loader_gives_both_models_the_same_batches(net, images):
    import copy

    loader = DataLoader(TensorDataset(images), batch_size=10, shuffle=True)
    result = CKA(net, copy.deepcopy(net)).compare(loader, progress=False)
    torch.testing.assert_close(
        result.matrix.diagonal(), torch.ones(7, dtype=torch.float64), atol=1e-6, rtol=0
    )
    twice = CKA(net, copy.deepcopy(net)).compare(loader, loader, progress=False)
    assert twice.matrix.diagonal().min() > 1 - 1e-6


def test_rows_are_in_the_order_of_definition_whatever_runs_first(tools):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)
            self.first = nn.Linear(6, 4)

        def forward(self, x):
            return self.last(self.first(x))

    net, x = Backwards(), torch.randn(12, 6)
    net.eval()
    result = CKA(net).compare([x], progress=False)
    assert result.rows == result.columns == ["last", "first"]
    hidden = net.first(x)
    expected = sk.cka(net.last(hidden).double(), x.double())
    other = CKA(net, nn.Sequential(nn.Identity()).eval(), layers2=["0"], layers1="last")
    torch.testing.assert_close(
        other.compare([x], progress=False).matrix[0, 0], expected.detach(), atol=1e-5, rtol=0
    )


def test_all_batches_count(tools):
    batches = [tools.correlated(12, (5, 9), seed) for seed in range(4)]
    assert not torch.allclose(
        tools.compare_given(batches).matrix, tools.compare_given(batches[-1:]).matrix, atol=1e-3
    )


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_small_last_batch_is_merged_with_the_one_before(left, net, images):
    loader = DataLoader(TensorDataset(images[: 16 + left]), batch_size=8)
    result = CKA(net).compare(loader, progress=False)
    assert result.n == 16 + left
    assert result.batches == 2
    assert torch.isfinite(result.matrix).all()
    parts = [images[:8], images[8 : 16 + left]]
    expected = CKA(net).compare(parts, progress=False)
    assert torch.equal(result.matrix, expected.matrix)


@pytest.mark.parametrize(("size", "sizes"), [(2, [4, 4, 4, 5]), (3, [6, 6, 5]), (1, [4, 4, 4, 5])])
def test_small_batches_are_merged_as_far_as_they_must(size, sizes, net, images):
    result = CKA(net).compare(images[:17].split(size), progress=False)
    expected = CKA(net).compare(images[:17].split(sizes), progress=False)
    assert result.batches == len(sizes)
    assert torch.equal(result.matrix, expected.matrix)


def test_a_small_batch_that_cannot_be_merged_is_left_out_with_a_notice(tools):
    sequences = [torch.randn(8, 6, 4), torch.randn(2, 5, 4)]
    net = nn.Sequential(nn.Linear(4, 3)).eval()
    with pytest.warns(UserWarning, match=r"a batch of 2 sample\(s\) was left out"):
        result = CKA(net).compare(sequences, progress=False)
    assert result.n == 8


def test_max_samples_cuts_the_last_batch(net, images):
    loader = DataLoader(TensorDataset(images), batch_size=16)
    result = CKA(net).compare(loader, max_samples=24, progress=False)
    assert (result.n, result.batches) == (24, 2)
    expected = CKA(net).compare([images[:16], images[16:24]], progress=False)
    assert torch.equal(result.matrix, expected.matrix)
    endless = (images[:8] for _ in itertools.count())
    assert CKA(net).compare(endless, max_samples=20, progress=False).n == 20


def test_unrelated_layers_are_not_clamped_at_zero():
    lowest = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 16, 200, generator=generator)
        lowest.append(float(_given([[x, y]]).matrix[0, 1]))
    assert min(lowest) < 0
    assert abs(sum(lowest) / 6) < 0.1


def _given(batches):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.taps = nn.ModuleList(nn.Identity() for _ in batches[0])

        def forward(self, *features):
            for tap, feature in zip(self.taps, features, strict=True):
                tap(feature)

    return CKA(Given().eval(), inputs=tuple).compare(batches, progress=False)


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_features_far_from_zero(offset, tools):
    batches = [
        [x + offset * x.std() for x in tools.correlated(16, (8, 256), seed)] for seed in range(3)
    ]
    result = tools.compare_given(batches)
    torch.testing.assert_close(result.matrix, tools.minibatch_oracle(batches), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_does_not_matter(scale, tools):
    batches = [tools.correlated(16, (8, 256), seed) for seed in range(3)]
    scaled = [[xs[0] * scale, xs[1]] for xs in batches]
    torch.testing.assert_close(
        tools.compare_given(scaled).matrix, tools.minibatch_oracle(batches), atol=1e-5, rtol=0
    )


def test_float16_and_one_large_channel(tools):
    batches = [[x.half() for x in tools.correlated(16, (8, 256), seed)] for seed in range(3)]
    for xs in batches:
        xs[1][:, 0] = 1e3 * torch.randn(16).half().clamp(-3, 3)
    result = tools.compare_given(batches)
    torch.testing.assert_close(result.matrix, tools.minibatch_oracle(batches), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 3.7, 1e6])
@pytest.mark.parametrize("mode", ["minibatch", "exact"])
def test_constant_layers_are_zero_and_marked(value, mode, tools):
    batches = [[*tools.correlated(16, (8,), seed), torch.full((16, 30), value)] for seed in (0, 1)]
    with pytest.warns(UserWarning, match=r"without variation between samples.*taps\.1"):
        result = tools.compare_given(batches, mode=mode)
    assert result.constant_rows == result.constant_columns == ["taps.1"]
    assert result.matrix.tolist() == [[pytest.approx(1, abs=1e-15), 0], [0, 0]]


def test_identical_samples_are_zero_and_marked(tools):
    row = torch.randn(1, 50) * 100
    batches = [[torch.randn(16, 4), row.expand(16, 50)]]
    with pytest.warns(UserWarning, match="without variation"):
        assert tools.compare_given(batches).matrix[1, 1] == 0


def test_the_models_are_left_as_they_were(net, images):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    CKA(net).compare([images], progress=False)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    with pytest.raises(RuntimeError, match=r"shape|size|channels"):
        CKA(net).compare([torch.randn(8, 2, 8, 8)], progress=False)
    assert not any(module._forward_hooks for module in net.modules())


def _encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, **options).eval()


@pytest.mark.parametrize(
    ("layers", "fused"),
    [
        (["layers.*.linear1", "layers.*"], False),
        (["layers.*.self_attn"], False),
        (["layers.*"], True),
    ],
)
def test_layers_of_transformer_blocks_are_seen_in_inference(layers, fused, monkeypatch):
    net = _encoder(enable_nested_tensor=False)
    kernel, calls = torch._native_multi_head_attention, []
    monkeypatch.setattr(
        torch, "_native_multi_head_attention", lambda *a: (calls.append(1), kernel(*a))[1]
    )
    result = CKA(net, layers1=layers).compare([torch.randn(6, 5, 8)], progress=False)
    chosen = select_layers(net, layers).modules
    assert result.rows == list(chosen)
    assert torch.backends.mha.get_fastpath_enabled()
    # torch's attention kernel calls no module inside, and is taken where none inside is asked for.
    assert len(calls) == (2 if fused else 0)


def test_an_encoder_that_packs_padded_sequences():
    net = _encoder()
    assert net.use_nested_tensor
    batch = {"src": torch.randn(6, 5, 8), "src_key_padding_mask": torch.zeros(6, 5).bool()}
    batch["src_key_padding_mask"][:3, 3:] = True
    result = CKA(net, layers1="layers.*", inputs=dict).compare([batch], progress=False)
    assert result.rows == ["layers.0", "layers.1"]
    assert torch.isfinite(result.matrix).all()


def test_sums_never_wait_for_the_device(tools):
    """Tensors without values: reading one on the host, as a GPU would be waited for, raises."""
    engine = MinibatchEngine(
        sk.Linear(), "unbiased", True, Team(False), standard_error=None, permutations=0, seed=0
    )
    with sk.backend("reference"):
        for _ in range(3):
            grams = [engine.reduce(("", i), torch.empty(8, 5, device="meta")) for i in range(4)]
            engine.add([grams], 8, [["a", "b", "c", "d"]])
    assert engine.samples == 24


def test_data_parallel_and_compiled_models_keep_their_names(net, images):
    plain = CKA(net).compare([images], progress=False)
    wrapped = CKA(nn.DataParallel(net).eval()).compare([images], progress=False)
    assert wrapped.rows == plain.rows
    assert torch.equal(wrapped.matrix, plain.matrix)


def test_model_layers_lists_shapes(net, images):
    listed = {layer.name: layer for layer in model_layers(net, images[:3])}
    assert list(listed) == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "fc"]
    assert listed["conv2"].shapes == ((3, 8, 3, 3),)
    assert listed["fc"].type == "Linear"
    assert listed["fc"].leaf
    assert model_layers(net)[0].calls == 0
    assert not any(module._forward_hooks for module in net.modules())


def test_float64_on_demand(net, images):
    exact = CKA(net.double(), layers1=["conv1", "fc"]).compare([images.double()], progress=False)
    wide = CKA(net.float(), layers1=["conv1", "fc"], dtype=torch.float64).compare(
        [images], progress=False
    )
    torch.testing.assert_close(wide.matrix, exact.matrix, atol=1e-6, rtol=0)
