"""Layers whose parameter is their kept weights: values, training, states, conversions."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import sparsekern as sk


@pytest.fixture
def layer() -> sk.nn.MaskedLinear:
    made = sk.nn.MaskedLinear(60, 40, mask=torch.rand(40, 60) > 0.9)
    with torch.no_grad():
        made.weight.masked_fill_(~made.mask, 0)
    return made


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_that_of_masked_layers(optimizer: type[torch.optim.Optimizer]) -> None:
    model = nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 8)).double()
    masked = sk.nn.sparsify(model, 0.9, "uniform")
    packed = sk.nn.pack(copy.deepcopy(masked))
    assert [type(m) for m in packed] == [sk.nn.PackedLinear, nn.ReLU, sk.nn.PackedLinear]
    optimizers = [optimizer(m.parameters(), lr=0.05) for m in (masked, packed)]
    for _ in range(10):
        x, y = torch.randn(16, 30).double(), torch.randint(8, (16,))
        losses = []
        for own, steps in zip((masked, packed), optimizers, strict=True):
            steps.zero_grad()
            losses.append(nn.functional.cross_entropy(own(x), y))
            losses[-1].backward()
            steps.step()
        torch.testing.assert_close(*losses)
    for before, after in zip(masked, sk.nn.to_masked(packed), strict=True):
        if isinstance(before, nn.Linear):
            assert torch.equal(before.mask, after.mask)
            torch.testing.assert_close(torch.where(before.mask, before.weight, 0), after.weight)
            torch.testing.assert_close(before.bias, after.bias)
    assert optimizers[1].state_dict()["param_groups"]
    sizes = [s.numel() for state in optimizers[1].state.values() for s in state.values() if s.dim()]
    assert all(size < 300 for size in sizes)  # of 1500 weights in the first layer


def test_conversions_lose_nothing(layer: sk.nn.MaskedLinear) -> None:
    x = torch.randn(5, 60)
    expected = layer(x)
    packed = sk.nn.pack(layer)
    assert isinstance(packed, sk.nn.PackedLinear)
    assert packed.bias is layer.bias
    assert packed.values.shape == (int(layer.mask.sum()),)
    torch.testing.assert_close(packed(x), expected)
    assert torch.equal(sk.nn.to_masked(packed).weight, layer.weight)
    assert torch.equal(sk.nn.to_dense(packed).weight, layer.weight)
    assert type(sk.nn.to_dense(packed)) is nn.Linear
    assert torch.equal(packed.to_dense(), layer.weight)
    small = sk.nn.compress(packed).eval()
    assert isinstance(small, sk.nn.CompressedLinear)
    torch.testing.assert_close(small(x), expected)
    from_dense = sk.nn.PackedLinear.from_linear(nn.Linear(60, 40, bias=False), layer.mask)
    assert from_dense.bias is None
    assert "in_features=60, out_features=40, bias=False, sparsity=0." in repr(from_dense)
    twice = sk.nn.pack(nn.Sequential(layer, layer))
    assert twice[0] is twice[1]


def test_copies_and_states(layer: sk.nn.MaskedLinear) -> None:
    x = torch.randn(5, 60)
    packed = sk.nn.pack(layer)
    expected = packed(x)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(x), expected)
        assert other.pattern is not packed.pattern
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"values", "bias", "pointer", "index"}
    other = sk.nn.PackedLinear(torch.randn(40, 60), torch.rand(40, 60) > 0.5, torch.zeros(40))
    parameter = other.values
    other.load_state_dict(state)  # which keeps other weights, and fewer
    assert other.values is parameter
    assert torch.equal(other(x), expected)
    other(x).sum().backward()
    assert other.values.grad.shape == other.values.shape
    small = sk.nn.compress(copy.deepcopy(packed)).eval()
    other.load_state_dict(small.state_dict())
    torch.testing.assert_close(small(x), expected)


def test_states_that_do_not_fit_are_refused(layer: sk.nn.MaskedLinear) -> None:
    packed = sk.nn.pack(layer)
    state = packed.state_dict()
    del state["index"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "index"'):
        packed.load_state_dict(state)
    state = packed.state_dict()
    state["pointer"] = state["pointer"][:-1]
    with pytest.raises(RuntimeError, match="the kept weights of the layer do not fit: pointer"):
        packed.load_state_dict(state)
    state = packed.state_dict()
    state["index"] = state["index"].flip(0)
    state["pointer"] = state["pointer"][-1] - state["pointer"].flip(0)
    with pytest.raises(RuntimeError, match="index must ascend within each row"):
        packed.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_casts_and_autocast(dtype: torch.dtype, layer: sk.nn.MaskedLinear) -> None:
    x = torch.randn(5, 60)
    packed = sk.nn.pack(layer)
    expected = packed(x)
    cast = copy.deepcopy(packed).to(dtype)
    found = cast(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=5e-2, atol=5e-2)
    with pytest.raises(RuntimeError, match="no form without values"):
        packed.to("meta")
    with torch.autocast("cpu", torch.bfloat16):
        found = packed(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=5e-2, atol=5e-2)
    found.sum().backward()
    assert packed.values.grad.dtype == torch.float32
    wanted = torch.autograd.grad(packed(x).sum(), packed.values)[0]
    torch.testing.assert_close(packed.values.grad, wanted, rtol=5e-2, atol=5e-2)


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("turned", [False, True])
def test_compiled_as_one_graph(layer: sk.nn.MaskedLinear, turned: bool) -> None:
    packed = sk.nn.pack(layer)
    x = torch.randn(60, 32).t() if turned else torch.randn(32, 60)
    x.requires_grad_()
    leaves = [x, *packed.parameters()]
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    torch.testing.assert_close(out, packed(x))
    found = torch.autograd.grad(out.square().sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(packed(x).square().sum(), leaves))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), packed(x))


def test_summary_shows_packed_layers(layer: sk.nn.MaskedLinear) -> None:
    model = nn.Sequential(sk.nn.pack(layer), nn.ReLU())
    plain, measured = sk.nn.summary(model), sk.nn.summary(model, torch.randn(8, 60), seconds=0.01)
    for found in (plain, measured):
        (row,) = found.rows
        assert (row.shape, row.nnz, row.flops) == ((40, 60), layer.pattern.nnz, 2 * row.nnz)
    assert measured.rows[0].training_speedup is not None


def test_leading_dimensions(layer: sk.nn.MaskedLinear) -> None:
    packed = sk.nn.pack(layer)
    x = torch.randn(2, 3, 60)
    torch.testing.assert_close(packed(x), layer(x))
    torch.testing.assert_close(packed(x[0, 0]), layer(x[0, 0]))
    assert packed(x[:0]).shape == (0, 3, 40)


def test_errors(layer: sk.nn.MaskedLinear) -> None:
    with pytest.raises(ValueError, match="model has no MaskedLinear"):
        sk.nn.pack(nn.Sequential(nn.Linear(3, 4)))
    dense = sk.nn.MaskedLinear(4, 4, weight_grad="dense")
    with pytest.raises(ValueError, match='layer has weight_grad="dense"'):
        sk.nn.pack(nn.Sequential(layer, dense))
    tied = sk.nn.MaskedLinear(60, 40)
    tied.weight = layer.weight
    with pytest.raises(ValueError, match="layers '0' and '1' share a weight"):
        sk.nn.pack(nn.Sequential(layer, tied))
    with pytest.raises(ValueError, match="mask must be given"):
        sk.nn.PackedLinear.from_linear(nn.Linear(3, 4))
    with pytest.raises(TypeError, match=r"layer must be a torch\.nn\.Linear, got ReLU"):
        sk.nn.PackedLinear.from_linear(nn.ReLU())
    with pytest.raises(ValueError, match=r"bias must have shape \(40,\)"):
        sk.nn.PackedLinear(layer.weight, layer.mask, torch.zeros(3))
