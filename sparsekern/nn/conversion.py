"""Whole models: their linear and convolutional layers masked, and made dense again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ..ops.masked import SparsityPattern
from ..ops.masked.linear import check_weight_grad
from .compressed import CompressedLinear
from .densities import check_sparsity, erk_counts, kept_in_all
from .layers import MaskedConv2d, MaskedLinear
from .packed import PackedLinear
from .weights import excluded_modules, find_weights

_Model = TypeVar("_Model", bound=nn.Module)
_SCHEMES = ("erk", "uniform", "global")
_CRITERIA = ("magnitude", "random")


def sparsify(
    model: _Model,
    sparsity: float,
    scheme: str = "erk",
    exclude: Iterable[str | nn.Module] = (),
    *,
    criterion: str = "magnitude",
    weight_grad: str = "masked",
    generator: torch.Generator | None = None,
) -> _Model:
    """Replaces linear and convolutional layers by masked ones, in place.

    Parameters stay the tensors they are: an optimizer made before goes on working. Layers that are
    masked already get new masks. Subclasses of ``nn.Linear`` and ``nn.Conv2d`` are left alone, and
    so are layers whose parameters are pruned, parametrised or hooked (:func:`from_pruned` takes
    those of ``torch.nn.utils.prune``).

    Args:
        model: changed in place; a single layer is replaced in the result only.
        sparsity: the share of weights to remove, over all layers that are masked, in ``[0, 1)``.
        scheme: how it is shared. ``"erk"``: a layer keeps weights in proportion to the sum of its
            dimensions (Erdős–Rényi kernel; Mocanu et al. 2018, Evci et al. 2020); ``"uniform"``:
            each the same share; ``"global"``: the largest weights over all layers.
        exclude: names or modules to leave dense, with everything inside them.
        criterion: which weights of a layer stay: ``"magnitude"``: the largest, ties by position;
            ``"random"``: any (not with ``"global"``).
        weight_grad: of the masked layers.
        generator: of the random criterion; None: torch's global one.

    Returns:
        The model.

    Raises:
        TypeError: if the model is no module.
        ValueError: for other values than these, an excluded name that no module has, or a model
            without a layer to mask.
    """
    _check(model, weight_grad)
    check_sparsity(sparsity)
    if scheme not in _SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(_SCHEMES)}, got {scheme!r}")
    if criterion not in _CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(_CRITERIA)}, got {criterion!r}")
    if scheme == "global" and criterion == "random":
        raise ValueError('criterion must be "magnitude" for scheme "global", got "random"')
    excluded = excluded_modules(model, exclude)
    layers = {
        name: module
        for name, module in model.named_modules()
        if module not in excluded and _is_plain_layer(module)
    }
    if not layers:
        raise ValueError("model has no linear or convolutional layer to mask")
    weights = [layer.weight.detach() for layer in layers.values()]
    scores = [w.abs() if criterion == "magnitude" else _random(w, generator) for w in weights]
    masks = _masks(scores, sparsity, scheme)
    replacements: dict[nn.Module, nn.Module] = {}
    for layer, mask in zip(layers.values(), masks, strict=True):
        if isinstance(layer, MaskedLinear | MaskedConv2d):
            layer.set_mask(mask)
            layer.weight_grad = weight_grad
        elif isinstance(layer, nn.Linear):
            replacements[layer] = MaskedLinear.from_linear(layer, mask, weight_grad=weight_grad)
        else:
            replacements[layer] = MaskedConv2d.from_conv2d(layer, mask, weight_grad=weight_grad)
    return _replace(model, lambda module: replacements.get(module))


def from_pruned(model: _Model, *, weight_grad: str = "masked") -> _Model:
    """Takes over what ``torch.nn.utils.prune`` has pruned, in place.

    Every linear or convolutional layer whose weight is pruned becomes a masked layer with that
    mask; prune's hooks and buffers are removed. Its trained tensor, ``weight_orig``, becomes the
    parameter ``weight``, so that optimizers made before go on working. Pruning of biases and of
    other layers is made permanent as ``prune.remove`` makes it.

    Args:
        model: changed in place; a single layer is replaced in the result only.
        weight_grad: of the masked layers.

    Returns:
        The model.

    Raises:
        TypeError: if the model is no module.
        ValueError: if nothing of it is pruned.
    """
    _check(model, weight_grad)
    if not prune.is_pruned(model):
        raise ValueError("model has no module that torch.nn.utils.prune has pruned")
    patterns: dict[nn.Module, SparsityPattern] = {}
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if not isinstance(hook, prune.BasePruningMethod):
                continue
            name = hook._tensor_name
            takes_mask = type(module) in (nn.Linear, nn.Conv2d) and name == "weight"
            if takes_mask:
                patterns[module] = SparsityPattern.from_pruned(module, name)
                original = module.get_parameter("weight_orig").detach().clone()
            prune.remove(module, name)
            if takes_mask:  # prune.remove has zeroed what lies under the mask
                with torch.no_grad():
                    module.get_parameter("weight").copy_(original)

    def masked(module: nn.Module) -> nn.Module | None:
        pattern = patterns.get(module)
        if pattern is None:
            return None
        if isinstance(module, nn.Linear):
            return MaskedLinear.from_linear(module, pattern, weight_grad=weight_grad)
        assert isinstance(module, nn.Conv2d)
        return MaskedConv2d.from_conv2d(module, pattern, weight_grad=weight_grad)

    return _replace(model, masked)


def from_masks(
    model: _Model, masks: Mapping[str, Tensor], *, weight_grad: str = "masked"
) -> _Model:
    """Makes layers masked ones with given masks, in place, such as a pruner's.

    ::

        sk.nn.from_masks(model, pruner.masks)

    Parameters stay the tensors they are. A tied weight's mask, under its first name, goes to all
    layers that share it. Other layers than ``nn.Linear`` and ``nn.Conv2d`` (1d and 3d convolutions,
    attention) have no masked form and stay as they are.

    Args:
        model: changed in place; a single layer is replaced in the result only. Wrappers around it
            are looked through.
        masks: parameter name -> bool mask of its shape.
        weight_grad: of the masked layers.

    Returns:
        The model.

    Raises:
        TypeError: if the model is no module, masks no mapping, or a mask no bool tensor.
        ValueError: for a name that no linear, convolutional or attention weight has, or a mask of
            another shape. In each case nothing is changed.
    """
    _check(model, weight_grad)
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks must map names to bool tensors, got {type(masks).__name__}")
    weights = {weight.name: weight for weight in find_weights(model)}
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"masks[{name!r}] must be a bool tensor, got {found}")
        if name not in weights:
            raise ValueError(
                f"masks names {name!r}: expected weights of the model, which has "
                f"{', '.join(weights) or 'none'}"
            )
        shape = tuple(weights[name].parameter.shape)
        if tuple(mask.shape) != shape:
            raise ValueError(
                f"masks[{name!r}] has shape {tuple(mask.shape)} and the weight {shape}: "
                "expected the same"
            )
    replacements: dict[nn.Module, nn.Module] = {}
    for name, mask in masks.items():
        for layer in weights[name].owners:
            if isinstance(layer, MaskedLinear | MaskedConv2d):
                layer.set_mask(mask)
                layer.weight_grad = weight_grad
            elif type(layer) is nn.Linear:
                replacements[layer] = MaskedLinear.from_linear(layer, mask, weight_grad=weight_grad)
            elif type(layer) is nn.Conv2d:
                replacements[layer] = MaskedConv2d.from_conv2d(layer, mask, weight_grad=weight_grad)
    return _replace(model, replacements.get)


def compress(model: _Model, *, keep_dense: bool = False) -> _Model:
    """Makes masked and packed linear layers :class:`CompressedLinear`, for inference, in place.

    What is not kept is dropped, mask included: at 90 % sparsity a float32 layer takes 0.6 bytes
    for each of its weights instead of 6.2. Masked convolutions stay as they are.

    Args:
        model: changed in place; a single layer is replaced in the result only.
        keep_dense: lets layers keep the dense weight as well, where large batches go by it.

    Returns:
        The model, in the mode it was in. :func:`to_dense` takes it back.

    Raises:
        TypeError: if the model is no module.
        ValueError: if the model has no masked linear layer.
    """
    _check(model)
    if not any(isinstance(module, MaskedLinear | PackedLinear) for module in model.modules()):
        raise ValueError("model has no MaskedLinear: sparsekern.nn.sparsify makes them")

    def compressed(module: nn.Module) -> nn.Module | None:
        if isinstance(module, PackedLinear):
            module = module.to_masked()
        if not isinstance(module, MaskedLinear):
            return None
        return CompressedLinear.from_linear(module, keep_dense=keep_dense)

    return _replace(model, compressed)


def pack(model: _Model) -> _Model:
    """Makes every :class:`MaskedLinear` a :class:`PackedLinear`, for masks that stay, in place.

    The layer's parameter is then its kept weights alone, and so are gradients and an optimizer's
    state: make the optimizer afterwards. Masked convolutions stay as they are.

    Args:
        model: changed in place; a single layer is replaced in the result only.

    Returns:
        The model. :func:`to_masked` and :func:`to_dense` take it back.

    Raises:
        TypeError: if the model is no module.
        ValueError: if the model has no masked linear layer, or one whose weight other layers share
            or whose gradient is dense (``weight_grad``). In each case nothing is changed.
    """
    _check(model)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, MaskedLinear)]
    if not layers:
        raise ValueError("model has no MaskedLinear: sparsekern.nn.sparsify makes them")
    owners: dict[int, str] = {}
    for name, layer in layers:
        first = owners.setdefault(id(layer.weight), name)
        if first != name:
            raise ValueError(
                f"layers {first!r} and {name!r} share a weight, which packed ones cannot"
            )
    packed = {layer: PackedLinear.from_linear(layer) for _, layer in layers}
    return _replace(model, lambda m: packed[m] if isinstance(m, MaskedLinear) else None)


def to_masked(model: _Model) -> _Model:
    """Makes every :class:`PackedLinear` a :class:`MaskedLinear` again, in place.

    Weights that are not kept are 0. The weight is a new parameter, the bias stays the one it is.

    Returns:
        The model; a single layer is replaced in the result only.

    Raises:
        TypeError: if the model is no module.
    """
    _check(model)
    return _replace(model, lambda m: m.to_masked() if isinstance(m, PackedLinear) else None)


def to_dense(model: _Model) -> _Model:
    """Makes every masked, packed or compressed layer an ``nn.Linear`` or ``nn.Conv2d``, in place.

    Weights that are not kept become 0. Parameters of masked layers stay the tensors they are, the
    weights of packed layers and all of compressed ones are new.

    Returns:
        The model; a single layer is replaced in the result only.

    Raises:
        TypeError: if the model is no module.
    """
    _check(model)
    return _replace(model, _dense)


def _check(model: object, weight_grad: str = "masked") -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_weight_grad(weight_grad)


def _dense(module: nn.Module) -> nn.Module | None:
    if isinstance(module, CompressedLinear | PackedLinear):
        return module.to_linear()
    if not isinstance(module, MaskedLinear | MaskedConv2d):
        return None
    dense: nn.Linear | nn.Conv2d
    if isinstance(module, MaskedLinear):
        dense = nn.Linear(
            module.in_features, module.out_features, module.bias is not None, device="meta"
        )
    else:
        dense = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            module.bias is not None,
            module.padding_mode,
            device="meta",
        )
    with torch.no_grad():
        module.weight.masked_fill_(~module.mask, 0)
    dense.weight, dense.bias = module.weight, module.bias
    return dense.train(module.training)


def _replace(model: _Model, replacement: Callable[[nn.Module], nn.Module | None]) -> _Model:
    own = replacement(model)
    if own is not None:
        return own  # type: ignore[return-value]
    seen: dict[nn.Module, nn.Module | None] = {}  # a layer used in two places stays one layer
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            if child not in seen:
                seen[child] = replacement(child)
            new = seen[child]
            if new is not None:
                parent._modules[name] = new
    return model


def _is_plain_layer(module: nn.Module) -> bool:
    if type(module) in (MaskedLinear, MaskedConv2d):
        return True
    return (
        type(module) in (nn.Linear, nn.Conv2d)
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and not module._forward_pre_hooks
        and not module._forward_hooks
    )


def _random(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def _masks(scores: Sequence[Tensor], sparsity: float, scheme: str) -> list[Tensor]:
    sizes = [score.numel() for score in scores]
    if scheme == "global":
        flat = torch.cat([score.flatten().float() for score in scores])
        kept = _largest(flat, kept_in_all(sum(sizes), sparsity)).split(sizes)
        return [mask.view(score.shape) for mask, score in zip(kept, scores, strict=True)]
    if scheme == "erk":
        counts = erk_counts([score.shape for score in scores], sparsity)
    else:
        counts = [kept_in_all(size, sparsity) for size in sizes]
    return [
        _largest(score.flatten(), count).view(score.shape)
        for score, count in zip(scores, counts, strict=True)
    ]


def _largest(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores, descending=True, stable=True).indices
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask
