"""Which layers of a model are compared: names, globs, types, predicates, and all of a kind."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from ..nn.wrappers import clean_name, unwrap
from ..regularizers.discovery import find_stages, module_names

Predicate: TypeAlias = Callable[[str, nn.Module], bool]
LayerSpec: TypeAlias = "str | type[nn.Module] | Predicate | Sequence[str | type[nn.Module]] | None"

KINDS = ("leaf", "blocks", "all")
_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_NAMES_SHOWN = 12


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a model, as :func:`model_layers` lists it.

    Attributes:
        name: what selects it.
        type: name of its class.
        leaf: whether it has no children.
        shapes: of its output in each call of the dry run, ``None`` where no tensor was found in
            it; empty for a layer that was not called, or without a dry run.
    """

    name: str
    type: str
    leaf: bool
    shapes: tuple[tuple[int, ...] | None, ...] = ()

    @property
    def calls(self) -> int:
        """How often the dry run called it."""
        return len(self.shapes)


@dataclass(frozen=True)
class Selection:
    """The layers of one model that are compared.

    Attributes:
        modules: name to module, in the order of definition.
        named: names that the caller wrote out: these must run, others may be left out.
    """

    modules: dict[str, nn.Module]
    named: frozenset[str]


def callable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every module with an output of its own, by name, in the order of definition.

    A model without children is its own only layer, under the name of its class.
    """
    core = unwrap(model)
    found = {
        name: module
        for name, module in module_names(core).items()
        if not isinstance(unwrap(module), _NEVER_CALLED)
    }
    return found or {type(core).__name__: core}


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no children (what wraps it, as torch.compile does, aside)."""
    return not any(True for _ in unwrap(module).children())


def select_layers(model: nn.Module, layers: LayerSpec, argument: str = "layers") -> Selection:
    """The layers that a specification means, in the order of definition.

    Args:
        model: the network; DataParallel, DDP and torch.compile are looked through.
        layers: ``None`` or ``"leaf"`` for all modules without children; ``"blocks"`` for the
            residual or transformer blocks that
            :func:`~sparsekern.regularizers.discovery.find_stages` finds; ``"all"``; a name; a glob
            whose ``*``, ``?`` and ``[...]`` match within one dotted part and whose ``**`` matches
            any number of parts; a module type; a predicate ``(name, module) -> bool``; or a list of
            names, globs and types.
        argument: how errors call the specification.

    Raises:
        TypeError: if the specification has another form.
        ValueError: if a part of it matches nothing; the closest names are listed.
    """
    names = callable_layers(model)
    if layers is None or (isinstance(layers, str) and layers in KINDS and layers not in names):
        return Selection(_of_kind(model, names, layers or "leaf", argument), frozenset())
    if not isinstance(layers, str | type) and callable(layers):
        chosen = {name: module for name, module in names.items() if layers(name, unwrap(module))}
        if not chosen:
            raise ValueError(f"{argument}: the predicate holds for none of {_shorten(names)}")
        return Selection(chosen, frozenset())
    items: Sequence[Any] = [layers] if isinstance(layers, str | type) else layers
    if not isinstance(items, Sequence):
        raise TypeError(
            f"{argument} must be names, globs, module types, a predicate or one of "
            f"{', '.join(map(repr, KINDS))}, got {type(layers).__name__}"
        )
    if not items:
        raise ValueError(
            f"{argument} is empty: expected at least one layer, or None for all leaves"
        )
    picked: set[str] = set()
    named: set[str] = set()
    for item in items:
        matches = _matches(item, names, argument)
        picked.update(matches)
        if isinstance(item, str) and matches == [clean_name(item).removeprefix("module.")]:
            named.update(matches)
    return Selection({n: m for n, m in names.items() if n in picked}, frozenset(named))


def _of_kind(
    model: nn.Module, names: dict[str, nn.Module], kind: str, argument: str
) -> dict[str, nn.Module]:
    if kind == "all":
        return names
    if kind == "leaf":
        return {name: module for name, module in names.items() if is_leaf(module)}
    blocks = {name for stage in find_stages(unwrap(model)) for name, _ in stage}
    if not blocks:
        raise ValueError(
            f'{argument}="blocks": no residual or transformer blocks were found in '
            f"{type(unwrap(model)).__name__}; it has {_shorten(names)}"
        )
    return {name: module for name, module in names.items() if name in blocks}


def _matches(item: object, names: dict[str, nn.Module], argument: str) -> list[str]:
    if isinstance(item, type) and issubclass(item, nn.Module):
        found = [name for name, module in names.items() if isinstance(unwrap(module), item)]
        if not found:
            types = sorted({type(unwrap(module)).__name__ for module in names.values()})
            raise ValueError(
                f"{argument}: the model has no {item.__name__}; it has {', '.join(types)}"
            )
        return found
    if not isinstance(item, str):
        raise TypeError(
            f"{argument} holds {item!r:.80}: expected a name, a glob or a type of module"
        )
    pattern = clean_name(item)
    for candidate in (pattern, pattern.removeprefix("module.")):  # copied from a DDP model
        if candidate in names:
            return [candidate]
        parts = candidate.split(".")
        found = [name for name in names if _match_parts(name.split("."), parts)]
        if found:
            return found
    close = difflib.get_close_matches(item, names, n=4, cutoff=0.4)
    hint = f"closest names: {', '.join(close)}" if close else f"it has {_shorten(names)}"
    raise ValueError(f"{argument}: {item!r} matches no layer of the model; {hint}")


def _match_parts(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match_parts(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
    return (
        bool(parts) and fnmatchcase(parts[0], patterns[0]) and _match_parts(parts[1:], patterns[1:])
    )


def _shorten(names: dict[str, nn.Module]) -> str:
    shown = list(names)[:_NAMES_SHOWN]
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(shown) + more
