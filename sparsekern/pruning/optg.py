"""OptG: masks from scores that follow the gradient, on a straight-through estimate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.densities import kept_in_all
from ..nn.layers import MaskedConv2d, MaskedLinear
from ..ops import checks
from ..ops.masked import scores
from ..ops.precision import accumulation_dtype
from .base import Pruner
from .selection import keep_best


class OptG(Pruner):
    """Learns which weights to keep, from the gradient at removed and kept ones alike.

    With ``W̄ = W⊙M`` in the network and ``g = ∂L/∂W̄``: the weights are trained by ``M⊙g`` with
    the model's optimizer, and scores ``s``, 0 at first, by ``W⊙g`` with an SGD of their own
    (momentum, no weight decay); without momentum ``s = -Σ_t η_s W⊙g``. At the end of every epoch
    the masks are drawn anew: the highest scores of all layers together are kept. (Zhang et al.
    2022, "Optimizing Gradient-driven Criteria in Network Sparsity: Gradient is All You Need".)

    With t the epoch, from 0, and E their number: the sparsity during epoch t is
    ``P_t = P σ(t - E/2)``, exactly P in the last (there σ has not quite reached 1); the learning
    rate of scores is ``η_s = η_w σ(t - E/2)``, η_w that of the weight's parameter group at that
    step. In the paper ``η_w = η_0/2 (1 + cos(π t / E))`` after 5 epochs of warm-up: that is the
    caller's schedule. While all scores are equal nothing is pruned.

    Removed weights are 0 in the model and kept apart: momentum and weight decay move them as the
    optimizer moves any, and they come back with those values. Layers may be plain or masked ones
    of :mod:`sparsekern.nn`, which then give straight-through gradients. Clipping by norm sees the
    gradients of removed weights too; other pruners' ``mask_gradients`` would stop the scores.

    Args:
        sparsity, exclude, min_per_layer: see :class:`Pruner`.
        epochs: E. The masks of the last one stay.
        momentum: of the scores' SGD.
    """

    prunes_later = True
    forgets = False

    def __init__(
        self,
        sparsity: float,
        *,
        epochs: int,
        momentum: float = 0.9,
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(sparsity, exclude=exclude, min_per_layer=min_per_layer)
        checks.real_numbers(epochs=epochs, momentum=momentum)
        if epochs < 2:
            raise ValueError(f"epochs must be at least 2, for the first is dense; got {epochs}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.total_epochs, self.momentum = epochs, float(momentum)
        self._scores: list[Tensor] = []
        self._velocities: list[Tensor] = []
        self._hidden: list[Tensor] = []  # the weights, as they are where they are removed
        self._hooks: list[Any] = []

    @property
    def scores(self) -> dict[str, Tensor]:
        """Parameter name -> scores of its shape, float32 or float64; not to be written to."""
        names = [weight.name for weight in self._weights]
        return dict(zip(names, self._scores, strict=True))

    def sparsity_at(self, epoch: int) -> float:
        """P_t, the sparsity during an epoch, counted from 0."""
        if epoch >= self.total_epochs - 1:
            return self.sparsity_target
        return self.sparsity_target * self._gate(epoch)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> OptG:
        """See :meth:`Pruner.attach`; the optimizer must be given.

        Raises:
            TypeError: if it is not.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                "OptG takes the scores' learning rate from the optimizer and works inside of its "
                f"steps: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        super().attach(model, optimizer)
        for weight in self._weights:
            for owner in weight.owners:
                if isinstance(owner, MaskedLinear | MaskedConv2d):
                    owner.weight_grad = "dense"
        return self

    def _watch_optimizer(self) -> None:
        super()._watch_optimizer()
        assert self._optimizer is not None
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._before_optimizer),
            self._optimizer.register_step_post_hook(self._after_optimizer),
        ]

    def remove(self) -> None:
        """See :meth:`Pruner.remove`."""
        super().remove()
        for hook in self._hooks:
            hook.remove()

    def mask_gradients(self) -> None:
        """Not for OptG, whose scores need the gradients of removed weights.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("OptG's scores need the gradients of removed weights: do not mask them")

    def _gate(self, epoch: int) -> float:
        return 1 / (1 + math.exp(self.total_epochs / 2 - epoch))

    def _after_epoch(self) -> None:
        if self.epochs >= self.total_epochs:
            return
        lows = min(score.min().item() for score in self._scores)
        if lows < max(score.max().item() for score in self._scores):
            self._prune_to(kept_in_all(self._total, self.sparsity_at(self.epochs)))

    def _allowed(self) -> list[Tensor]:
        allowed = None if self.tandem is None else self.tandem.allowed()
        return [torch.ones_like(mask) for mask in self._masks] if allowed is None else allowed

    def _choose(self, kept: int, allowed: list[Tensor]) -> list[Tensor]:
        return keep_best(self._scores, allowed, kept, min_per_layer=self.min_per_layer)

    # --- inside of the optimizer's step ------------------------------------------------------

    @torch.no_grad()
    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Moves the scores by ``W⊙g``, then leaves the optimizer ``W`` and ``M⊙g``."""
        found_inf = getattr(optimizer, "found_inf", None)
        moves = found_inf is None or not bool(found_inf)
        rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        # A fused optimizer divides by the gradient scale itself, inside of its step.
        scale = getattr(optimizer, "grad_scale", None)
        gate = self._gate(self.epochs)
        for index, parameter in enumerate(self._parameters):
            pruned = self._counts[index] < parameter.numel()
            if moves and parameter.grad is not None and parameter in rates:
                scores.step_(
                    parameter,
                    parameter.grad,
                    self._hidden[index],
                    self._removed[index] if pruned else None,
                    self._velocities[index],
                    self._scores[index],
                    self.momentum,
                    rates[parameter] * gate,
                    scale,
                )
            elif pruned:
                parameter.copy_(self._whole(index))
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(self._removed[index], 0)

    @torch.no_grad()
    def _after_optimizer(self, *_: Any) -> None:
        """Puts removed weights, as they are now, aside again."""
        for index, parameter in enumerate(self._parameters):
            if self._counts[index] < parameter.numel():
                self._hidden[index].copy_(parameter)
                parameter.masked_fill_(self._removed[index], 0)

    def _whole(self, index: int) -> Tensor:
        """W, removed weights included."""
        return torch.where(
            self._removed[index], self._hidden[index], self._parameters[index].detach()
        )

    @torch.no_grad()
    def _put(self, masks: list[Tensor]) -> None:
        if not self._hidden:  # while it is attached
            self._hidden = [parameter.detach().clone() for parameter in self._parameters]
            for parameter in self._parameters:
                for tensors in (self._scores, self._velocities):
                    dtype = accumulation_dtype(parameter.dtype)
                    tensors.append(torch.zeros_like(parameter, dtype=dtype))
        else:
            for index, parameter in enumerate(self._parameters):
                self._hidden[index] = self._whole(index)
                parameter.copy_(self._hidden[index])
        super()._put(masks)

    def _own_state(self) -> dict[str, Any]:
        return {
            "scores": list(self._scores),
            "velocities": list(self._velocities),
            "weights": [self._whole(index) for index in range(len(self._weights))],
        }

    @torch.no_grad()
    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        for index, parameter in enumerate(self._parameters):
            self._scores[index].copy_(state["scores"][index])
            self._velocities[index].copy_(state["velocities"][index])
            self._hidden[index].copy_(state["weights"][index])
            parameter.copy_(self._hidden[index])
