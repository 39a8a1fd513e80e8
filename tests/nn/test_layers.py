"""MaskedLinear and MaskedConv2d as modules: state, copies, devices, compile, autocast, training."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk

Layer = sk.nn.MaskedLinear | sk.nn.MaskedConv2d


def linear(**options: object) -> sk.nn.MaskedLinear:
    return sk.nn.MaskedLinear(50, 40, mask=torch.rand(40, 50) > 0.8, **options)


def conv(**options: object) -> sk.nn.MaskedConv2d:
    mask = torch.rand(12, 8, 3, 3) > 0.8
    return sk.nn.MaskedConv2d(8, 12, 3, padding=1, mask=mask, **options)


LAYERS: dict[str, tuple[Callable[..., Layer], tuple[int, ...]]] = {
    "linear": (linear, (6, 50)),
    "conv": (conv, (2, 8, 9, 7)),
}


def dense(layer: Layer, x: Tensor) -> Tensor:
    weight = layer.weight * layer.mask
    if isinstance(layer, sk.nn.MaskedLinear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, padding=1)


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[Callable[..., Layer], Tensor]:
    make, shape = request.param
    return make, torch.randn(shape)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": torch.float64}], ids=str)
def test_forward_and_backward(
    case: tuple[Callable[..., Layer], Tensor], options: dict[str, object], backend: str
) -> None:
    make, x = case
    layer = make(**options)
    x = x.to(layer.weight.dtype)
    out = layer(x)
    torch.testing.assert_close(out, dense(layer, x))
    out.sum().backward()
    assert not layer.weight.grad[~layer.mask].any()
    straight = make(weight_grad="dense", **options)
    straight(x).sum().backward()
    assert straight.weight.grad[~straight.mask].any()


def test_set_mask(case: tuple[Callable[..., Layer], Tensor]) -> None:
    make, x = case
    layer = make()
    before, weight = layer.mask, layer.weight.detach().clone()
    mask = torch.rand(layer.weight.shape) > 0.3
    layer.set_mask(mask)
    assert layer.mask is before
    assert torch.equal(layer.mask, mask)
    assert layer.sparsity == pytest.approx(1 - mask.float().mean().item())
    assert torch.equal(layer.weight, weight)
    torch.testing.assert_close(layer(x), dense(layer, x))
    layer.set_mask(sk.SparsityPattern(~mask))
    torch.testing.assert_close(layer(x), dense(layer, x))


def test_new_layers_keep_every_weight() -> None:
    layer = sk.nn.MaskedLinear(5, 4)
    assert layer.sparsity == 0
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_state_dict(case: tuple[Callable[..., Layer], Tensor]) -> None:
    make, x = case
    layer, other = make(), make()
    state = layer.state_dict()
    assert sorted(state) == ["bias", "mask", "weight"]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    for assign in (False, True):
        other = make()
        other.load_state_dict(torch.load(buffer), assign=assign)
        buffer.seek(0)
        assert torch.equal(other.mask, layer.mask)
        assert torch.equal(other(x), layer(x))


def test_a_dense_checkpoint_loads_and_leaves_the_mask() -> None:
    layer, plain = linear(), nn.Linear(50, 40)
    mask = layer.mask.clone()
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.mask, mask)
    missing, unexpected = plain.load_state_dict(layer.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["mask"])


def test_copies(case: tuple[Callable[..., Layer], Tensor]) -> None:
    make, x = case
    layer = make()
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
        assert other.mask is other.pattern.mask
        other.set_mask(torch.zeros_like(layer.mask))
    assert torch.equal(layer(x), expected)


def test_casts_and_devices() -> None:
    layer = linear()
    wide = copy.deepcopy(layer).double()
    assert wide.mask.dtype == torch.bool
    x = torch.randn(6, 50)
    torch.testing.assert_close(wide(x.double()).float(), layer(x))
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    shell = copy.deepcopy(layer).to("meta")
    assert shell.mask.is_meta
    assert "sparsity" not in repr(shell)
    with pytest.raises(RuntimeError, match="meta device is not known"):
        _ = shell.sparsity
    shell.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(shell(x), layer(x))
    with torch.device("meta"):
        shell = sk.nn.MaskedLinear(50, 40)
    empty = shell.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))


def test_compile(case: tuple[Callable[..., Layer], Tensor]) -> None:
    make, x = case
    layer = make()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), dense(layer, x))
        compiled(x).sum().backward()
        assert not layer.weight.grad[~layer.mask].any()
        layer.set_mask(torch.rand(layer.weight.shape) > 0.5)
        layer.zero_grad()
    torch._dynamo.reset()


def test_autocast(case: tuple[Callable[..., Layer], Tensor]) -> None:
    make, x = case
    layer = make()
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = layer(x), dense(layer, x)
    assert out.dtype == expected.dtype == torch.bfloat16
    assert (out - expected).norm() < 1e-2 * expected.norm()
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_padding_modes(padding_mode: str) -> None:
    plain = nn.Conv2d(8, 12, 3, padding=1, padding_mode=padding_mode)
    layer = sk.nn.MaskedConv2d.from_conv2d(plain)
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(layer(x), plain(x))


def test_representation() -> None:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, 0] = True
    assert repr(sk.nn.MaskedLinear(5, 4, mask=mask, weight_grad="dense")) == (
        "MaskedLinear(in_features=5, out_features=4, bias=True, sparsity=0.9500, "
        'weight_grad="dense")'
    )
    assert "sparsity=0.0000" in repr(sk.nn.MaskedConv2d(2, 3, 3))


def test_errors() -> None:
    with pytest.raises(ValueError, match="weight_grad must be"):
        sk.nn.MaskedLinear(5, 4, weight_grad="none")
    layer = sk.nn.MaskedLinear(5, 4)
    with pytest.raises(ValueError, match=r"mask has shape \(5, 4\) and the weight \(4, 5\)"):
        layer.set_mask(torch.ones(5, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be a bool tensor or a SparsityPattern, got tor"):
        layer.set_mask(torch.ones(4, 5))
    with pytest.raises(TypeError, match="got float"):
        layer.set_mask(0.5)
    with pytest.raises(ValueError, match="mask is on meta and the weight on cpu"):
        layer.set_mask(torch.ones(4, 5, dtype=torch.bool, device="meta"))


def test_distributed_data_parallel(run_ranks: Callable[..., None], tmp_path: Path) -> None:
    """The gradient is the mean of the ranks', and stays on the mask."""
    layer, x = linear(), torch.randn(2, 6, 50)
    torch.save((layer, x), tmp_path / "input.pt")
    run_ranks(Path(__file__).with_name("distributed_worker.py"), 2)
    sum(dense(layer, part).square().sum() for part in x).div(2).backward()
    assert not layer.weight.grad[~layer.mask].any()
    for rank in range(2):
        for steps in torch.load(tmp_path / f"output{rank}.pt"):
            for grad, p in zip(steps, layer.parameters(), strict=True):
                torch.testing.assert_close(grad, p.grad)


def test_training_is_that_of_masked_dense_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5)
    )
    model = model.double()
    sk.nn.sparsify(model, 0.9, exclude=["4"])
    twin = sk.nn.to_dense(copy.deepcopy(model))
    masks = [m.mask for m in (model[0], model[2])]
    x, target = torch.randn(128, 20).double(), torch.randint(5, (128,))
    steps = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (model, twin)]
    for _ in range(50):
        losses = [F.cross_entropy(m(x), target) for m in (model, twin)]
        for loss, step in zip(losses, steps, strict=True):
            step.zero_grad()
            loss.backward()
        for index, mask in zip((0, 2), masks, strict=True):
            twin[index].weight.grad.mul_(mask)
        for step in steps:
            step.step()
        torch.testing.assert_close(losses[0], losses[1])
