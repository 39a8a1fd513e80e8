"""sparsify, from_pruned, to_dense: which layers, which masks, and what stays what it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparsekern as sk
from sparsekern.nn.densities import erk_counts


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(16 * 64, 10),
    )


def masked_layers(model: nn.Module) -> list[sk.nn.MaskedLinear | sk.nn.MaskedConv2d]:
    kinds = (sk.nn.MaskedLinear, sk.nn.MaskedConv2d)
    return [m for m in model.modules() if isinstance(m, kinds)]


X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("scheme", ["erk", "uniform", "global"])
def test_schemes(scheme: str) -> None:
    model = network()
    parameters = list(model.parameters())
    assert sk.nn.sparsify(model, 0.9, scheme) is model
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    layers = masked_layers(model)
    assert len(layers) == 3
    sizes = [layer.weight.numel() for layer in layers]
    kept = [int(layer.mask.sum()) for layer in layers]
    if scheme == "erk":
        assert kept == erk_counts([layer.weight.shape for layer in layers], 0.9)
    elif scheme == "uniform":
        assert kept == [size - int(0.9 * size) for size in sizes]
    else:
        assert sum(kept) == sum(sizes) - int(0.9 * sum(sizes))
        removed = [layer.weight[~layer.mask].abs().max().item() for layer in layers]
        stayed = [layer.weight[layer.mask].abs().min().item() for layer in layers]
        assert max(removed) <= min(stayed)
    for layer in layers:
        largest = layer.weight.abs()[~layer.mask]
        assert not largest.numel() or largest.max() <= layer.weight.abs()[layer.mask].min()
    assert model(X).shape == (2, 10)


def test_again_with_another_sparsity() -> None:
    model = sk.nn.sparsify(network(), 0.5)
    layers = masked_layers(model)
    sk.nn.sparsify(model, 0.95, weight_grad="dense")
    assert masked_layers(model) == layers
    assert all(layer.weight_grad == "dense" for layer in layers)
    total = sum(layer.weight.numel() for layer in layers)
    assert sum(int(layer.mask.sum()) for layer in layers) == total - int(0.95 * total)


def test_random_masks_come_from_the_generator() -> None:
    masks = []
    for seed in (0, 0, 1):
        model = sk.nn.sparsify(
            network(), 0.9, criterion="random", generator=torch.Generator().manual_seed(seed)
        )
        masks.append([layer.mask for layer in masked_layers(model)])
    assert all(torch.equal(a, b) for a, b in zip(masks[0], masks[1], strict=True))
    assert not torch.equal(masks[0][0], masks[2][0])


def test_excluded_layers_stay_dense() -> None:
    model = network()
    sk.nn.sparsify(model, 0.9, exclude=["3", model[5]])
    assert [type(m) for m in (model[0], model[3][0], model[5])] == [
        sk.nn.MaskedConv2d,
        nn.Conv2d,
        nn.Linear,
    ]
    with pytest.raises(ValueError, match="exclude names 'head'"):
        sk.nn.sparsify(model, 0.9, exclude="head")


def test_a_single_layer() -> None:
    plain = nn.Linear(20, 10)
    layer = sk.nn.sparsify(plain, 0.5)
    assert isinstance(layer, sk.nn.MaskedLinear)
    assert layer.weight is plain.weight
    assert type(sk.nn.to_dense(layer)) is nn.Linear


def test_a_layer_used_twice_stays_one() -> None:
    shared = nn.Linear(20, 20)
    model = sk.nn.sparsify(nn.ModuleList([shared, shared, nn.Linear(20, 20)]), 0.5)
    assert model[0] is model[1]
    assert model[0] is not model[2]


def test_subclasses_and_hooked_layers_are_left_alone() -> None:
    attention = nn.MultiheadAttention(16, 2)  # its projection is a subclass of Linear
    hooked = nn.Linear(16, 16)
    hooked.register_forward_hook(lambda *_: None)
    model = sk.nn.sparsify(nn.ModuleList([attention, hooked, nn.Linear(16, 16)]), 0.5)
    assert [type(m) for m in masked_layers(model)] == [sk.nn.MaskedLinear]
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        sk.nn.sparsify(nn.ModuleList([attention]), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"sparsity": math.nan}, r"sparsity must be in \[0, 1\), got nan"),
        ({"sparsity": "0.9"}, r"sparsity must be in \[0, 1\), got '0.9'"),
        ({"scheme": "best"}, "scheme must be one of erk, uniform, global, got 'best'"),
        ({"criterion": "snip"}, "criterion must be one of magnitude, random, got 'snip'"),
        ({"scheme": "global", "criterion": "random"}, 'criterion must be "magnitude"'),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.nn.sparsify(network(), **{"sparsity": 0.5, **options})  # type: ignore[arg-type]


def test_something_else_than_a_model() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        sk.nn.sparsify([nn.Linear(2, 2)], 0.5)  # type: ignore[type-var]


def test_to_dense_and_back() -> None:
    model = sk.nn.sparsify(network(), 0.9).eval()
    masks = [layer.mask for layer in masked_layers(model)]
    expected = model(X)
    parameters = [id(p) for p in model.parameters()]
    dense = sk.nn.to_dense(model)
    assert dense is model
    assert not masked_layers(model)
    assert not model[0].training
    assert [id(p) for p in model.parameters()] == parameters
    assert sorted(model.state_dict()) == sorted(network().state_dict())
    torch.testing.assert_close(model(X), expected)
    assert torch.equal(model[0].weight != 0, masks[0])


def test_from_pruned() -> None:
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.8)
    prune.random_unstructured(model[0], "weight", 0.5)  # on top: prune keeps one combined mask
    prune.l1_unstructured(model[5], "weight", 0.9)
    prune.l1_unstructured(model[5], "bias", 0.5)
    prune.l1_unstructured(model[1], "weight", 0.5)
    expected = model.eval()(X)
    mask, original = model[0].weight_mask.bool(), model[0].weight_orig
    values = original.detach().clone()
    assert sk.nn.from_pruned(model) is model
    assert [type(m) for m in masked_layers(model)] == [sk.nn.MaskedConv2d, sk.nn.MaskedLinear]
    assert torch.equal(model[0].mask, mask)
    assert model[0].weight is original
    assert torch.equal(model[0].weight, values)
    assert not prune.is_pruned(model)
    assert not any("orig" in name for name in model.state_dict())
    torch.testing.assert_close(model(X), expected)
    with pytest.raises(ValueError, match="has pruned"):
        sk.nn.from_pruned(network())


def test_from_masks() -> None:
    model = network()
    parameters = list(model.parameters())
    pruner = sk.pruning.RST(0.8).attach(model)
    expected = model(X)
    assert sk.nn.from_masks(model, pruner.masks) is model
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    layers = masked_layers(model)
    assert len(layers) == 3
    for layer, mask in zip(layers, pruner.masks.values(), strict=True):
        assert torch.equal(layer.mask, mask)
    torch.testing.assert_close(model(X), expected)
    other = sk.pruning.RST(0.5, seed=1).attach(network())  # layers that are masked already
    sk.nn.from_masks(model, other.masks)
    for layer, mask in zip(masked_layers(model), other.masks.values(), strict=True):
        assert torch.equal(layer.mask, mask)


def test_from_masks_of_tied_wrapped_and_other_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.MultiheadAttention(4, 1))
    model[1].weight = model[0].weight
    wrapped = nn.DataParallel(model)
    pruner = sk.pruning.RST(0.5, exclude="2.out_proj").attach(wrapped)
    sk.nn.from_masks(wrapped, pruner.masks)
    assert isinstance(model[0], sk.nn.MaskedLinear)
    assert torch.equal(model[0].mask, model[1].mask)
    assert type(model[2]) is nn.MultiheadAttention


def test_from_masks_refuses_other_masks() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"masks names '1.weight': expected .* has 0\.weight"):
        sk.nn.from_masks(model, {"1.weight": torch.ones(3, 4, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"has shape \(4, 3\) and the weight \(3, 4\)"):
        sk.nn.from_masks(model, {"0.weight": torch.ones(4, 3, dtype=torch.bool)})
    assert type(model[0]) is nn.Linear


def test_wrong_arguments_change_nothing() -> None:
    keep = torch.ones(10, 16 * 64, dtype=torch.bool)
    masked, pruned = sk.nn.sparsify(network(), 0.5), network()
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    before = [layer.mask.clone() for layer in masked_layers(masked)]
    for call in (
        lambda: sk.nn.sparsify(masked, 0.9, weight_grad="both"),
        lambda: sk.nn.from_pruned(pruned, weight_grad="both"),
        lambda: sk.nn.from_masks(masked, {"5.weight": ~keep}, weight_grad="both"),
    ):
        with pytest.raises(
            ValueError, match='weight_grad must be "masked" or "dense", got \'both\''
        ):
            call()
    with pytest.raises(TypeError, match=r"masks\['5.weight'\] must be a bool tensor, got torch.f"):
        sk.nn.from_masks(
            masked, {"0.weight": torch.zeros(16, 3, 3, 3) > 0, "5.weight": keep.float()}
        )
    with pytest.raises(TypeError, match="masks must map names to bool tensors, got list"):
        sk.nn.from_masks(masked, [keep])  # type: ignore[arg-type]
    for call in (
        sk.nn.from_pruned,
        sk.nn.to_dense,
        sk.nn.compress,
        lambda m: sk.nn.from_masks(m, {}),
    ):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
            call(3)  # type: ignore[type-var]
    for exclude in (3, [3]):
        with pytest.raises(TypeError, match="exclude must hold names or modules, got"):
            sk.nn.sparsify(masked, 0.9, exclude=exclude)  # type: ignore[arg-type]
    assert all(map(torch.equal, before, [layer.mask for layer in masked_layers(masked)]))
    assert prune.is_pruned(pruned)
    assert not masked_layers(pruned)


def test_layers_are_made_of_layers_of_their_kind() -> None:
    with pytest.raises(TypeError, match=r"linear must be a torch.nn.Linear, got Conv2d"):
        sk.nn.MaskedLinear.from_linear(nn.Conv2d(2, 2, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"conv must be a torch.nn.Conv2d, got Linear"):
        sk.nn.MaskedConv2d.from_conv2d(nn.Linear(2, 2))  # type: ignore[arg-type]
