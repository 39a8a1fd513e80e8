"""Which weights of a model are made sparse: found by the layers that own them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

from torch import nn

from .wrappers import clean_name, unwrap

# Attention keeps its projections as bare parameters; that of the output is a Linear.
_WEIGHTS_OF: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.Linear, ("weight",)),
    (nn.Conv1d, ("weight",)),
    (nn.Conv2d, ("weight",)),
    (nn.Conv3d, ("weight",)),
    (
        nn.MultiheadAttention,
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    ),
)


class Weight(NamedTuple):
    """One parameter to be made sparse.

    Attributes:
        name: of the parameter in the unwrapped model, without the prefixes of wrappers.
        parameter: the dense tensor that is trained.
        owners: the layers that use it: several where it is tied.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[nn.Module, ...]


def find_weights(
    model: nn.Module,
    exclude: Iterable[str | nn.Module] = (),
    kinds: tuple[type[nn.Module], ...] | None = None,
) -> list[Weight]:
    """The weights of a model's linear, convolutional and attention layers, in module order.

    Biases, normalisation and embeddings are not among them, nor weights that are pruned or
    parametrised by torch.nn.utils. A tied weight is one weight, under its first name; if one of
    the modules that share it is excluded or of another kind (an embedding), it stays dense.

    Args:
        model: the network; wrappers around it are looked through.
        exclude: names or modules to leave dense, with everything inside them.
        kinds: the only kinds of layer to look at; None: ``nn.Linear``, ``nn.Conv1d`` to
            ``nn.Conv3d``, ``nn.MultiheadAttention``, and their subclasses.

    Returns:
        The weights; an empty list if there is none.

    Raises:
        TypeError: if the model is no module, or something else than names and modules is excluded.
        ValueError: for an excluded name or module that the model does not have.
    """
    core = unwrap(model)
    excluded = excluded_modules(core, exclude)
    names: dict[nn.Parameter, str] = {}
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    dense: set[nn.Parameter] = set()
    for module_name, module in core.named_modules():
        chosen = () if module in excluded else _weight_names(module, kinds)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if name not in chosen:
                dense.add(parameter)
                continue
            full = f"{module_name}.{name}" if module_name else name
            names.setdefault(parameter, clean_name(full))
            owners.setdefault(parameter, []).append(module)
    return [
        Weight(name, parameter, tuple(owners[parameter]))
        for parameter, name in names.items()
        if parameter not in dense
    ]


def excluded_modules(model: nn.Module, exclude: Iterable[str | nn.Module]) -> set[nn.Module]:
    """The modules that names and modules stand for, with everything inside them.

    Raises:
        TypeError: for something else.
        ValueError: for a name that no module has, or a module that is not the model's.
    """
    modules = {clean_name(name): module for name, module in model.named_modules()}
    own, found = set(model.modules()), set[nn.Module]()
    for item in listed(exclude):
        if isinstance(item, nn.Module) and item not in own:
            raise ValueError(f"exclude holds a {type(item).__name__} that is not in the model")
        if isinstance(item, str) and item not in modules:
            raise ValueError(f"exclude names {item!r}, and the model has no module of that name")
        found |= set((modules[item] if isinstance(item, str) else item).modules())
    return found


def listed(exclude: Iterable[str | nn.Module]) -> list[str | nn.Module]:
    """What is excluded, one name or module included, as a list.

    Raises:
        TypeError: for something else than names and modules.
    """
    if isinstance(exclude, str | nn.Module):
        return [exclude]
    several = isinstance(exclude, Sequence | Set | Iterator)
    items: list[Any] = list(exclude) if several else [exclude]
    for item in items:
        if not isinstance(item, str | nn.Module):
            raise TypeError(f"exclude must hold names or modules, got {item!r:.80}")
    return items


def _weight_names(module: nn.Module, kinds: tuple[type[nn.Module], ...] | None) -> tuple[str, ...]:
    if kinds is not None and not isinstance(module, kinds):
        return ()
    return next((names for kind, names in _WEIGHTS_OF if isinstance(module, kind)), ())
