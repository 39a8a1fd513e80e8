"""AP, activating-while-pruning: a share of any method's pruning, for more active neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from .base import Pruner
from .rewinding import Snapshot
from .selection import keep_best


class AP:
    """Prunes in tandem with another method: weights whose removal makes neurons more active.

    Of the weights that a cycle prunes the base method takes all but a share, by its own metric.
    AP takes the share: of the surviving **negative** weights of all layers those with the smallest
    ``|w_end - w_start|`` over the cycle. Without negative weights pre-activations rise, and fewer
    ReLUs are dead. (Liu et al. 2022, "AP: Selective Activation for De-sparsifying Pruned Neural
    Networks"; there cycles of r = 20% of what remains, of which AP prunes p = 2%: a share of
    .1.) ::

        pruner = sk.pruning.AP(sk.pruning.LTH(0.98, epochs=50), share=0.1)
        pruner.attach(model, optimizer)                  # and step(), epoch() as with any method

    - A cycle lasts from one pruning of the base to the next. The first masks, made when it is
      attached, are the base's alone.
    - AP takes the share of what a pruning removes, but not more than the same share of what the
      base leaves; this bounds it where a method prunes nearly everything at once (ART).
    - A base that prunes only when attached (RST, SNIP, GraSP) or keeps its number of weights (SET,
      RigL) has no cycles: it leaves the share of its weights more, and AP prunes them, in
      ``cycles`` equal parts, ``epochs`` epochs apart. (This is not in the paper.)
    - If there are not enough negative weights, the base prunes the rest (SET, RigL, SNIP and GraSP
      by magnitude).
    - What AP has pruned stays pruned: SET and RigL do not grow it, OptG does not draw it.

    Args:
        base: a method that is not attached yet.
        share: p/r, in [0, 1).
        epochs: of a cycle, for a base without cycles.
        cycles: their number, for such a base.
        rewind: the epoch at whose end parameters and buffers are remembered, to go back to after
            every pruning, with the optimizer's state cleared; 0: when attached; None: as the base
            does it (LTH rewinds, the others go on).

    Attributes:
        base: the method.
    """

    def __init__(
        self,
        base: Pruner,
        *,
        share: float = 0.1,
        epochs: int = 1,
        cycles: int = 1,
        rewind: int | None = None,
    ) -> None:
        if not isinstance(base, Pruner):
            raise TypeError(f"base must be a Pruner, got {type(base).__name__}")
        if base.tandem is not None:
            raise ValueError("base prunes in tandem with another AP already")
        checks.real_numbers(share=share)
        checks.whole_numbers(epochs=epochs, cycles=cycles)
        if not 0 <= share < 1:
            raise ValueError(f"share must be in [0, 1), got {share}")
        if epochs < 1 or cycles < 1:
            raise ValueError(f"epochs and cycles must be positive, got {epochs} and {cycles}")
        if rewind is not None and checks.whole_number(rewind, "rewind") < 0:
            raise ValueError(f"rewind must be None or an epoch from 0 on, got {rewind}")
        self.base, self.share, self.rewind = base, float(share), rewind
        self.cycle_epochs, self.cycles = epochs, cycles
        base.tandem = self
        self._in_own_cycle = False
        self._start: list[Tensor] = []  # the weights at the start of the cycle
        self._banned: list[Tensor] = []  # what AP has pruned
        self._snapshot = Snapshot()
        self._waiting: Mapping[str, Any] | None = None

    # --- the protocol, see Pruner ------------------------------------------------------------

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> AP:
        """See :meth:`Pruner.attach`."""
        self.base.attach(model, optimizer)
        if self.rewind == 0:
            self._snapshot.take(self.base._core)
        if self._waiting is not None:
            state, self._waiting = self._waiting, None
            self._restore(state)
        return self

    def step(self) -> None:
        """See :meth:`Pruner.step`."""
        self.base.step()

    def epoch(self) -> None:
        """See :meth:`Pruner.epoch`."""
        if self.rewind is not None and self.base.epochs + 1 == self.rewind:
            self._snapshot.take(self.base._core)
        self.base.epoch()
        cycle, rest = divmod(self.base.epochs, self.cycle_epochs)
        if not self.base.prunes_later and rest == 0 and cycle <= self.cycles:
            spare = self._spare(self.base._final) * (self.cycles - cycle) // self.cycles
            self._in_own_cycle = True
            self.base._prune_to(self.base._final + spare)
            self._in_own_cycle = False

    @property
    def masks(self) -> dict[str, Tensor]:
        """See :attr:`Pruner.masks`."""
        return self.base.masks

    @property
    def sparsity(self) -> float:
        """See :attr:`Pruner.sparsity`."""
        return self.base.sparsity

    @property
    def sparsity_target(self) -> float:
        """What was asked for, of both together."""
        return self.base.sparsity_target

    @property
    def total(self) -> int:
        """See :attr:`Pruner.total`."""
        return self.base.total

    @property
    def kept(self) -> int:
        """See :attr:`Pruner.kept`."""
        return self.base.kept

    @property
    def kept_per_layer(self) -> dict[str, tuple[int, int]]:
        """See :attr:`Pruner.kept_per_layer`."""
        return self.base.kept_per_layer

    @property
    def steps(self) -> int:
        """Optimizer steps seen."""
        return self.base.steps

    @property
    def epochs(self) -> int:
        """Epochs seen."""
        return self.base.epochs

    def mask_gradients(self) -> None:
        """See :meth:`Pruner.mask_gradients`."""
        self.base.mask_gradients()

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """See :meth:`Pruner.set_optimizer`."""
        self.base.set_optimizer(optimizer)

    def remove(self) -> None:
        """See :meth:`Pruner.remove`."""
        self.base.remove()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Pruner.state_dict`."""
        return {
            "method": "AP",
            "base": self.base.state_dict(),
            "start": list(self._start),
            "banned": list(self._banned),
            "snapshot": self._snapshot.tensors,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Pruner.load_state_dict`."""
        if state["method"] != "AP":
            raise ValueError(f"the state is that of {state['method']}: expected AP")
        self.base.load_state_dict(state["base"])
        if self._start:
            self._restore(state)
        else:
            self._waiting = state

    # --- what the base asks, see Tandem ------------------------------------------------------

    @property
    def pruned_by_ap(self) -> int:
        """How many weights AP itself has pruned so far."""
        return sum(int(banned.sum()) for banned in self._banned)

    def share_of(self, kept: int) -> int:
        """How many weights the base leaves for AP, where ``kept`` are to remain."""
        if not self.base._started:
            return 0 if self.base.prunes_later else self._spare(kept)
        removed = self.base.kept - kept
        if self._in_own_cycle:
            return removed
        return max(0, min(int(self.share * removed), self._spare(kept)))

    @torch.no_grad()
    def choose(self, masks: list[Tensor], kept: int) -> list[Tensor]:
        """Prunes negative weights that moved least, down to ``kept`` or as far as there are any."""
        parameters, least = self.base._parameters, self.base.min_per_layer
        remaining = [int(mask.sum()) for mask in masks]
        negative = [mask & (p < 0) for mask, p in zip(masks, parameters, strict=True)]
        removable = sum(
            max(0, min(int(candidates.sum()), count - least))
            for candidates, count in zip(negative, remaining, strict=True)
        )
        removed = min(sum(remaining) - kept, removable)
        if removed <= 0:
            return masks
        scores = [
            (parameter - start).abs().masked_fill(~candidates, torch.inf)
            for parameter, start, candidates in zip(parameters, self._start, negative, strict=True)
        ]
        chosen = keep_best(scores, masks, sum(remaining) - removed, min_per_layer=least)
        self._banned = [
            banned | (before & ~after)
            for banned, before, after in zip(self._banned, masks, chosen, strict=True)
        ]
        return chosen

    def allowed(self) -> list[Tensor]:
        """Everything but what AP has pruned."""
        return [~banned for banned in self._banned]

    @torch.no_grad()
    def pruned(self) -> None:
        """Rewinds if asked to, and begins the next cycle."""
        if not self._banned:
            self._banned = [torch.zeros_like(mask) for mask in self.base._masks]
        if self._snapshot.tensors:
            self._snapshot.restore(self.base._core)
            self.base._hold()
            if self.base._optimizer is not None:
                self.base._optimizer.state.clear()
        self._start = [parameter.detach().clone() for parameter in self.base._parameters]

    def _spare(self, kept: int) -> int:
        """``share · (kept + spare)``: what AP may prune of what the base leaves, to ``kept``."""
        return min(int(self.share * kept / (1 - self.share)), self.base._total - kept)

    def _restore(self, state: Mapping[str, Any]) -> None:
        devices = [parameter.device for parameter in self.base._parameters]
        self._start = [s.to(d, copy=True) for s, d in zip(state["start"], devices, strict=True)]
        self._banned = [b.to(d, copy=True) for b, d in zip(state["banned"], devices, strict=True)]
        self._snapshot.load(state["snapshot"])
