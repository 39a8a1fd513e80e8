"""Layers that hold their kept weights alone: made of masked ones, used, stored, and taken back."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(60, 80), nn.ReLU(), nn.Linear(80, 30, bias=False), nn.Tanh())
    return sk.nn.sparsify(made.to(dtype), 0.9, "uniform").eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 60)


def test_outputs_are_those_of_the_masked_layers(x: Tensor, backend: str) -> None:
    masked = model()
    expected = masked(x).detach()
    small = sk.nn.compress(copy.deepcopy(masked))
    assert [type(m) for m in small] == [
        sk.nn.CompressedLinear,
        nn.ReLU,
        sk.nn.CompressedLinear,
        nn.Tanh,
    ]
    torch.testing.assert_close(small(x), expected)
    torch.testing.assert_close(small(x[0]), expected[0])
    torch.testing.assert_close(small(x.expand(2, 7, 60)), expected.expand(2, 7, 30))
    dense = sk.nn.to_dense(small)
    assert [type(m) for m in dense] == [nn.Linear, nn.ReLU, nn.Linear, nn.Tanh]
    torch.testing.assert_close(dense(x), expected)
    assert dense[2].bias is None
    assert dense[0].weight.requires_grad


def test_a_single_layer_and_a_shared_one(x: Tensor) -> None:
    layer = sk.nn.MaskedLinear(60, 60, mask=torch.rand(60, 60) > 0.8).eval()
    single = sk.nn.compress(layer)
    assert isinstance(single, sk.nn.CompressedLinear)
    torch.testing.assert_close(single(x), layer(x))
    twice = sk.nn.compress(nn.Sequential(layer, layer))
    assert twice[0] is twice[1]


def test_memory_is_that_of_kept_weights() -> None:
    masked = sk.nn.sparsify(nn.Sequential(nn.Linear(512, 512)), 0.9)
    small = sk.nn.compress(masked)[0]
    assert small.nbytes < 0.2 * 512 * 512 * 4
    assert list(small.parameters()) == []
    small.eval()(torch.randn(100, 512))
    assert small.nbytes < 0.2 * 512 * 512 * 4
    assert f"sparsity=0.9000, nbytes={small.nbytes}" in repr(small)
    assert "in_features=512, out_features=512, bias=True" in repr(small)


def test_training_is_refused(x: Tensor) -> None:
    small = sk.nn.compress(model().train())
    assert small[0].training
    with pytest.raises(RuntimeError, match=r"is for inference.*call model\.eval\(\)"):
        small(x)
    with torch.no_grad():
        expected = small(x)
    assert torch.equal(small.eval()(x), expected)


def test_gradients_reach_the_input(x: Tensor) -> None:
    masked = model(torch.float64)
    small = sk.nn.compress(copy.deepcopy(masked))
    x = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(masked(x).sum(), x)
    (found,) = torch.autograd.grad(small(x).sum(), x)
    torch.testing.assert_close(found, expected)


def test_later_changes_of_the_masked_layer_change_nothing(x: Tensor) -> None:
    layer = sk.nn.MaskedLinear(60, 60, mask=torch.rand(60, 60) > 0.8).eval()
    small = sk.nn.compress(layer)
    expected = small(x)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    layer.set_mask(~layer.mask)
    assert torch.equal(small(x), expected)


def test_copies_and_states(x: Tensor) -> None:
    small = sk.nn.compress(model())
    expected = small(x)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), expected)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"0.bias"} | {
        f"{layer}.{part}" for layer in (0, 2) for part in ("pointer", "index", "values")
    }
    other = sk.nn.compress(model())  # which keeps other weights
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)


def test_states_that_do_not_fit_are_refused() -> None:
    small = sk.nn.compress(model())
    state = small.state_dict()
    del state["2.values"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "2.values"'):
        small.load_state_dict(state)
    state = small.state_dict()
    state["0.pointer"] = state["0.pointer"][:-1]
    with pytest.raises(
        RuntimeError, match=r"the kept weights of 0\. do not fit: pointer must hold"
    ):
        small.load_state_dict(state)
    state = small.state_dict()
    state["0.index"] = state["0.index"].float()
    with pytest.raises(RuntimeError, match=r"the kept weights of 0\. do not fit: index must be an"):
        small.load_state_dict(state)
    state = small.state_dict()
    state["0.index"] = state["0.index"].flip(0)
    state["0.pointer"] = state["0.pointer"][-1] - state["0.pointer"].flip(0)
    with pytest.raises(RuntimeError, match="index must ascend within each row"):
        small.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_casts(dtype: torch.dtype, x: Tensor) -> None:
    small = sk.nn.compress(model())
    expected = small(x)
    cast = copy.deepcopy(small).to(dtype)
    found = cast(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=5e-2, atol=5e-2)
    with pytest.raises(RuntimeError, match="no form without values"):
        small.to("meta")


def test_autocast(x: Tensor) -> None:
    small = sk.nn.compress(model())
    expected = small(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = small[0](x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(small(x).float(), expected, rtol=5e-2, atol=5e-2)


def test_compiled_as_one_graph(x: Tensor) -> None:
    small = sk.nn.compress(model())
    torch._dynamo.reset()
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), small(x))
    torch._dynamo.reset()


def test_errors() -> None:
    with pytest.raises(ValueError, match="model has no MaskedLinear"):
        sk.nn.compress(nn.Sequential(nn.Linear(3, 4)))
    with torch.device("meta"):
        shell = sk.nn.MaskedLinear(5, 4)
    with pytest.raises(ValueError, match="on the meta device has no weights to compress"):
        sk.nn.compress(shell)
