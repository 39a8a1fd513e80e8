"""LTH: lottery tickets, found by iterative magnitude pruning with rewinding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..nn.densities import kept_in_all
from ..ops import checks
from .magnitude import MagnitudePruner
from .rewinding import Snapshot


class LTH(MagnitudePruner):
    """Trains, prunes a share of what remains by magnitude, rewinds the weights, and trains again.

    (Frankle and Carbin 2019, "The Lottery Ticket Hypothesis": rewinding to the initial weights;
    Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis": to those of
    an early epoch.) A round lasts ``epochs`` epochs. After round k of n, ``(1 - rate)^k`` of the
    weights remain, and after the last round as many as the sparsity asks for; the training goes
    on with that ticket, so that ``(n + 1) · epochs`` epochs in all give it as long as the others.

    Rewinding writes all parameters and buffers back and clears the optimizer's state. A learning
    rate schedule is the caller's: begin it anew where :attr:`round` has changed after ``epoch()``,
    or make it a function of :attr:`round_epoch`.

    Args:
        sparsity: see :class:`Pruner`.
        epochs: of a round.
        rate: the share of the remaining weights that a round prunes.
        rounds: n; the rate follows from it. None: as many as the rate needs.
        rewind: the epoch of the first round at whose end the weights are remembered (0: when
            attached), less than ``epochs``; None: weights and optimizer go on as they are.
        distribution, exclude, min_per_layer: see :class:`MagnitudePruner`.
    """

    prunes_later = True

    def __init__(
        self,
        sparsity: float,
        *,
        epochs: int,
        rate: float = 0.2,
        rounds: int | None = None,
        rewind: int | None = 0,
        distribution: str = "global",
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(
            sparsity, distribution=distribution, exclude=exclude, min_per_layer=min_per_layer
        )
        checks.real_numbers(epochs=epochs, rate=rate)
        if epochs < 1:
            raise ValueError(f"epochs must be positive, got {epochs}")
        if not 0 < rate < 1:
            raise ValueError(f"rate must be between 0 and 1, got {rate}")
        if rounds is not None and checks.whole_number(rounds, "rounds") < 1:
            raise ValueError(f"rounds must be positive, got {rounds}")
        if rewind is not None and not 0 <= checks.whole_number(rewind, "rewind") < epochs:
            raise ValueError(
                f"rewind must be None or an epoch from 0 to {epochs - 1}, got {rewind}"
            )
        self.epochs_per_round, self.rewind = epochs, rewind
        if rounds is None:  # less a rounding error, so that .8³ needs three rounds of .2
            rounds = max(1, math.ceil(math.log1p(-sparsity) / math.log1p(-rate) - 1e-9))
            self.rate = rate
        else:
            self.rate = -math.expm1(math.log1p(-sparsity) / rounds)
        self.rounds = rounds
        self._snapshot = Snapshot()

    @property
    def round(self) -> int:
        """How many rounds have ended: 0 to ``rounds``."""
        return min(self.epochs // self.epochs_per_round, self.rounds)

    @property
    def round_epoch(self) -> int:
        """How many epochs of the present round have ended."""
        return self.epochs - self.round * self.epochs_per_round

    def sparsity_after(self, rounds: int) -> float:
        """The sparsity at the end of so many rounds."""
        if rounds >= self.rounds:
            return self.sparsity_target
        return min(1 - (1 - self.rate) ** rounds, self.sparsity_target)

    def _start(self) -> None:
        if self.rewind == 0:
            self._snapshot.take(self._core)

    def _after_epoch(self) -> None:
        if self.rewind is not None and self.epochs == self.rewind:
            self._snapshot.take(self._core)
        if self.round_epoch == 0 and self.epochs <= self.rounds * self.epochs_per_round:
            self._prune_to(kept_in_all(self._total, self.sparsity_after(self.round)))

    def _after_pruning(self) -> None:
        if self.rewind is None:
            return
        self._snapshot.restore(self._core)
        self._hold()
        if self._optimizer is not None:
            self._optimizer.state.clear()

    def _own_state(self) -> dict[str, Any]:
        return {"snapshot": self._snapshot.tensors}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._snapshot.load(state["snapshot"])
