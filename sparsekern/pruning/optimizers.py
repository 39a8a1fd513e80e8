"""What pruning asks of an optimizer: whether it stepped, and to forget what a mask changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# A scaler that begins too high skips some twenty steps in a row; more means another optimizer.
_PATIENCE = 100


class StepWatch:
    """Tells steps that were made from steps that a GradScaler skipped.

    A scaler that finds infinite gradients does not call the optimizer's ``step``, or, for fused
    optimizers, calls it with ``found_inf`` set, upon which it changes nothing.

    Args:
        optimizer: watched by a hook; None, or one without hooks: every step counts as made.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._stepped = False
        self._missed = 0
        self._handle: Any = None
        if optimizer is not None and hasattr(optimizer, "register_step_post_hook"):
            self._handle = optimizer.register_step_post_hook(self._note)

    def stepped(self) -> bool:
        """Whether the optimizer stepped since this was last asked."""
        stepped = self._stepped or self._handle is None
        self._stepped = False
        self._missed = 0 if stepped else self._missed + 1
        if self._missed == _PATIENCE:
            warnings.warn(
                f"the optimizer that the pruner was attached with has not stepped in {_PATIENCE} "
                "calls of step(), so no mask was held: give it the one that steps, with "
                "set_optimizer()",
                stacklevel=3,
            )
        return stepped

    def remove(self) -> None:
        """Takes the hook off the optimizer."""
        if self._handle is not None:
            self._handle.remove()

    def _note(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        self._stepped = found_inf is None or not bool(found_inf)


def check_optimizer(optimizer: torch.optim.Optimizer | None, parameters: Sequence[Tensor]) -> None:
    """Warns where an optimizer holds none of the parameters that are pruned.

    Raises:
        TypeError: if it is none.
    """
    if optimizer is None:
        return
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(parameter) in held for parameter in parameters):
        warnings.warn(
            f"the optimizer trains none of the {len(parameters)} weights that are pruned: it may "
            "be that of another model",
            stacklevel=5,
        )


@torch.no_grad()
def clear_state(optimizer: torch.optim.Optimizer | None, parameter: Tensor, where: Tensor) -> None:
    """Sets what an optimizer remembers of some entries of a parameter to 0: momentum, variances.

    Args:
        optimizer: None, or one whose state holds tensors of the parameter's shape.
        parameter: the parameter.
        where: bool, of its shape.
    """
    state = None if optimizer is None else optimizer.state.get(parameter)
    for value in (state or {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(where.to(value.device), 0)
