"""ART: adaptive regularized training with the HyperSparse loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from ..regularizers.hypersparse import HyperSparse, check_strength
from . import distributed
from .magnitude import MagnitudePruner
from .rewinding import Snapshot
from .stop_rule import StopRule

WARMUP, REGULARIZED, FINETUNING = "warm-up", "regularized", "fine-tuning"


class ART(MagnitudePruner):
    """Trains dense, presses small weights down ever harder, prunes when that costs no more.

    Three phases (Glandorf, Kaiser and Rosenhahn 2023, "HyperSparse Neural Networks: Shifting
    Exploration to Exploitation through Adaptive Regularization"):

    1. ``"warm-up"``: plain training, ``warmup`` epochs.
    2. ``"regularized"``: the loss is the task's plus :meth:`penalty`, ``strength · growth^e`` times
       :func:`sparsekern.hypersparse_loss`, e from 0. After each epoch the weights are pruned for a
       moment to measure what accuracy is left, and :class:`StopRule` decides.
    3. ``"fine-tuning"``: the candidate epoch's parameters and buffers are put back, pruned by
       magnitude over all layers, and trained on under that mask. The optimizer's state is cleared.

    As parts of one's own loop::

        art = sk.pruning.ART(0.98, accuracy=accuracy_on_training_data).attach(model, optimizer)
        while art.finetuned < 160:
            for images, labels in loader:
                ...
                (criterion(model(images), labels) + art.penalty()).backward()
                optimizer.step()
                art.step()
            art.epoch()

    or as a whole, with :meth:`run`. The learning rate is the caller's: in the paper SGD begins anew
    with the fine-tuning, at .1, times .1 at half and at three quarters of its 160 epochs.

    Args:
        sparsity, distribution, exclude, min_per_layer: see :class:`MagnitudePruner`.
        accuracy: from the unwrapped model to its accuracy on training data, in [0, 1] or percent;
            it must leave the model's mode as it finds it. With DDP the mean over ranks counts.
        warmup: epochs of plain training.
        strength, growth: see :class:`sparsekern.regularizers.HyperSparse`.
        window: of the stop rule.
        max_epochs: epochs of the second phase at most; None: until the rule stops.

    Attributes:
        phase: as above.
        finetuned: epochs of fine-tuning seen.
        history: for each epoch of the second phase the accuracy after pruning and before.
        rule: the stop rule.
    """

    prunes_later = True

    def __init__(
        self,
        sparsity: float,
        *,
        accuracy: Callable[[nn.Module], float],
        warmup: int = 60,
        strength: float = 5e-6,
        growth: float = 1.05,
        window: int = 3,
        max_epochs: int | None = None,
        distribution: str = "global",
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(
            sparsity, distribution=distribution, exclude=exclude, min_per_layer=min_per_layer
        )
        if not callable(accuracy):
            raise TypeError(f"accuracy must be a function of the model, got {accuracy!r:.80}")
        checks.real_numbers(warmup=warmup)
        check_strength(strength, growth)  # told now, and not only when the second phase begins
        if warmup < 0:
            raise ValueError(f"warmup must not be negative, got {warmup}")
        if max_epochs is not None and checks.whole_number(max_epochs, "max_epochs") < 1:
            raise ValueError(f"max_epochs must be positive, got {max_epochs}")
        self.warmup, self.max_epochs = warmup, max_epochs
        self.strength, self.growth = strength, growth
        self.rule = StopRule(window)
        self.phase = WARMUP if warmup else REGULARIZED
        self.finetuned = 0
        self.history: list[tuple[float, float]] = []
        self._accuracy = accuracy
        self._recent: dict[int, Snapshot] = {}  # epoch of the second phase -> the model then
        self._regularizer: HyperSparse | None = None
        self._reported: float | None = None

    def penalty(self) -> Tensor:
        """What to add to the task's loss: the HyperSparse loss in the second phase, else 0."""
        self._check_attached("penalty")
        if self.phase != REGULARIZED:
            return torch.zeros((), device=self._parameters[0].device)
        return self._hypersparse()()

    def epoch(self, train_accuracy: float | None = None) -> None:
        """See :meth:`Pruner.epoch`.

        Args:
            train_accuracy: the dense network's on training data in this epoch, where it is known
                from training; None: it is measured.
        """
        self._reported = train_accuracy
        super().epoch()

    def run(
        self,
        train_epoch: Callable[[ART], None],
        finetune: int = 160,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        """The whole training, from where it is to the end of fine-tuning.

        Args:
            train_epoch: trains one epoch, with :meth:`penalty` in the loss and :meth:`step` after
                every optimizer step.
            finetune: epochs of fine-tuning.
            on_phase: called with the name of each phase as it begins, the present one included:
                the place to set the learning rate.
        """
        phase = None
        while True:
            if phase != self.phase and on_phase is not None:
                on_phase(self.phase)
            phase = self.phase
            if self.finetuned >= finetune:
                return
            train_epoch(self)
            self.epoch()

    def _after_epoch(self) -> None:
        if self.phase == FINETUNING:
            self.finetuned += 1
        elif self.phase == WARMUP:
            if self.epochs >= self.warmup:
                self.phase = REGULARIZED
        else:
            self._after_regularized_epoch()

    def _after_regularized_epoch(self) -> None:
        number = len(self.history)
        self._recent[number] = Snapshot()
        self._recent[number].take(self._core)
        dense = self._reported
        if dense is None:
            dense = self._accuracy(self._core)
        pruned, dense = self._mean(self._accuracy_when_pruned()), self._mean(dense)
        self.history.append((pruned, dense))
        stop = self.rule.update(pruned, dense)
        # What may still become the candidate, and what is.
        oldest = number + 1 - self.rule.window // 2
        needed = {*range(oldest, number + 1), self.rule.candidate}
        self._recent = {n: snapshot for n, snapshot in self._recent.items() if n in needed}
        self._hypersparse().epoch()
        if stop or len(self.history) == self.max_epochs:
            self._finish()

    def _finish(self) -> None:
        """Prunes the candidate; where no window was filled, the network as it is."""
        if self.rule.candidate is not None:
            self._recent[self.rule.candidate].restore(self._core)
        self._prune_to(self._final)
        if self._optimizer is not None:
            self._optimizer.state.clear()
        self._recent = {}
        self.phase = FINETUNING

    @torch.no_grad()
    def _accuracy_when_pruned(self) -> float:
        before = Snapshot()
        before.take(self._core)
        masks = self._choose(self._final, self._masks)
        for parameter, mask in zip(self._parameters, masks, strict=True):
            parameter.masked_fill_(~mask, 0)
        try:
            return self._accuracy(self._core)
        finally:
            before.restore(self._core)

    def _mean(self, value: float) -> float:
        mean = torch.tensor(value, dtype=torch.float64, device=self._parameters[0].device)
        distributed.mean([mean], self._group)
        return mean.item()

    def _hypersparse(self) -> HyperSparse:
        if self._regularizer is None:
            self._regularizer = HyperSparse(
                self._core,
                self.sparsity_target,
                strength=self.strength,
                growth=self.growth,
                exclude=self._exclude,
            )
        return self._regularizer

    def _own_state(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "finetuned": self.finetuned,
            "history": [list(pair) for pair in self.history],
            "rule": self.rule.state_dict(),
            "recent": {number: snapshot.tensors for number, snapshot in self._recent.items()},
            "regularizer": self._hypersparse().state_dict(),
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self.phase, self.finetuned = state["phase"], state["finetuned"]
        self.history = [(pruned, dense) for pruned, dense in state["history"]]
        self.rule.load_state_dict(state["rule"])
        self._recent = {}
        for number, tensors in state["recent"].items():
            self._recent[number] = Snapshot()
            self._recent[number].load(tensors)
        self._hypersparse().load_state_dict(state["regularizer"])
