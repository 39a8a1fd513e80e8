"""The layers of a model that can be compared, and what a forward makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..nn.wrappers import unwrap
from .batches import InputRule, call_of
from .features import first_tensor
from .layers import LayerInfo, callable_layers, is_leaf


def model_layers(
    model: nn.Module, batch: Any = None, *, inputs: InputRule | None = None
) -> list[LayerInfo]:
    """The layers of a model that can be compared, and with a batch the shapes of their outputs.

    Args:
        model: the network.
        batch: as a loader would give it: one forward is run on it, in the mode that the model is
            in. Without one, layers are listed without shapes.
        inputs: as in :class:`CKA`.

    Returns:
        One entry for each module that can have an output, in the order of definition.
    """
    found = callable_layers(model)
    shapes: dict[str, tuple[tuple[int, ...] | None, ...]] = {}
    if batch is not None:
        shapes = _dry_run(model, found, batch, inputs)
    return [
        LayerInfo(name, type(unwrap(module)).__name__, is_leaf(module), shapes.get(name, ()))
        for name, module in found.items()
    ]


def _dry_run(
    model: nn.Module, layers: dict[str, nn.Module], batch: Any, inputs: InputRule | None
) -> dict[str, tuple[tuple[int, ...] | None, ...]]:
    seen: dict[str, tuple[tuple[int, ...] | None, ...]] = {}

    def listen(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            x = first_tensor(output)
            seen[name] = (*seen.get(name, ()), None if x is None else tuple(x.shape))

        return module.register_forward_hook(hook)

    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    call = call_of(model, batch, inputs, device)
    handles = [listen(name, module) for name, module in layers.items()]
    try:
        with torch.no_grad():
            model(*call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
