"""One training run: a seed, a loss, and a state that can be saved between any two steps."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..regularizers import CKASparsity
from . import data, models
from .masks import StaticMasks
from .measure import accuracy_and_loss, block_similarity
from .settings import Settings

Record = dict[str, Any]


class TrainingRun:
    """Trains one network, a step at a time.

    Everything random (split, masks, initial weights, order of the images) is a function of the
    seed, so that runs of one seed differ in nothing but the loss and can be compared in pairs.

    Args:
        settings: the experiment.
        regularizer: ``"none"``, ``"ckasr"`` or ``"augckasr"``.
        seed: decides everything random.
    """

    def __init__(self, settings: Settings, regularizer: str, seed: int) -> None:
        self.regularizer = regularizer
        self.seed = seed
        self._settings = settings
        self.digits = data.load_digits(seed, settings.held_out)
        self.model = models.build_model(
            settings.model, width=settings.width, channels=1, classes=10, seed=seed
        )
        self.masks = StaticMasks(self.model, settings.sparsity, seed)
        self._groups = models.similarity_groups(settings.model)
        self._penalty = self._attach()
        self._optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
        )
        self.epoch = 0
        self.batch = 0
        self._batches = self._shuffle()
        self._sums = _no_sums()
        self._seconds = 0.0
        self._running_loss = math.nan

    def _attach(self) -> CKASparsity | None:
        settings = self._settings
        if self.regularizer == "none":
            return None
        augmented = self.regularizer == "augckasr"
        return CKASparsity(
            self.model,
            self._groups,
            beta=settings.beta,
            samples=settings.samples,
            every=settings.every,
            estimator="biased" if augmented else "unbiased",
            pairs="all" if augmented else "stage",
        )

    def _shuffle(self) -> list[Tensor]:
        return data.epoch_batches(
            len(self.digits.train_labels), self._settings.batch_size, self.seed, self.epoch
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self._settings.epochs

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return len(self._batches)

    @property
    def steps_done(self) -> int:
        """Batches trained on since the first epoch."""
        return self.epoch * len(self._batches) + self.batch

    @property
    def running_loss(self) -> float:
        """The mean loss so far in this epoch; right after an epoch, that of the epoch."""
        return self._running_loss

    def step(self) -> Record | None:
        """Trains on one batch.

        Returns:
            After the last batch of an epoch its record, else None.

        Raises:
            ValueError: if the loss is no longer finite.
        """
        start = time.perf_counter()
        indices = self._batches[self.batch]
        images, labels = self.digits.train_images[indices], self.digits.train_labels[indices]
        self._set_learning_rate()
        self.model.train()
        logits = self.model(images)
        loss = functional.cross_entropy(logits, labels)
        penalty = self._penalty() if self._penalty is not None else torch.zeros(())
        self._optimizer.zero_grad()
        torch.autograd.backward(loss + penalty)
        self._optimizer.step()
        self.masks.apply()
        self._tally(logits.detach(), labels, loss.item(), penalty.item())
        self.batch += 1
        self._seconds += time.perf_counter() - start
        return self._end_epoch() if self.batch == len(self._batches) else None

    def _set_learning_rate(self) -> None:
        epochs = self._settings.epochs
        drops = (self.epoch >= epochs / 2) + (self.epoch >= epochs * 3 / 4)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr * 0.1**drops

    def _tally(self, logits: Tensor, labels: Tensor, loss: float, penalty: float) -> None:
        if not math.isfinite(loss + penalty):
            raise ValueError(
                f"the loss is no longer finite in epoch {self.epoch + 1} of seed {self.seed}: "
                "choose a lower --lr or --beta"
            )
        self._sums["loss"] += loss * len(labels)
        self._sums["correct"] += int((logits.argmax(dim=1) == labels).sum())
        self._sums["seen"] += len(labels)
        self._sums["penalty"] += penalty
        self._running_loss = self._sums["loss"] / self._sums["seen"]

    def _end_epoch(self) -> Record:
        sums = self._sums
        accuracy, loss = accuracy_and_loss(
            self.model, self.digits.held_out_images, self.digits.held_out_labels
        )
        self.epoch += 1
        record = {
            "kind": "epoch",
            "regularizer": self.regularizer,
            "seed": self.seed,
            "epoch": self.epoch,
            "train_loss": sums["loss"] / sums["seen"],
            "train_accuracy": sums["correct"] / sums["seen"],
            "penalty": sums["penalty"] / self.batch,
            "loss": loss,
            "accuracy": accuracy,
        }
        self.batch = 0
        self._batches = self._shuffle()
        self._sums = _no_sums()
        return record

    def result(self) -> Record:
        """What the trained network achieves: the accuracy of its last epoch, and its CKA."""
        accuracy, loss = accuracy_and_loss(
            self.model, self.digits.held_out_images, self.digits.held_out_labels
        )
        similarity = block_similarity(self.model, self._groups, self.digits.held_out_images)
        return {
            "kind": "run",
            "regularizer": self.regularizer,
            "seed": self.seed,
            "accuracy": accuracy,
            "loss": loss,
            "interlayer_cka": similarity.inside_groups,
            "interlayer_cka_all": similarity.all_pairs,
            "blocks": similarity.blocks,
            "cka": similarity.matrix,
            "weights": self.masks.total,
            "kept": self.masks.kept,
            "seconds": round(self._seconds, 3),
        }

    def close(self) -> None:
        """Takes the regulariser's hooks off the model."""
        if self._penalty is not None:
            self._penalty.remove()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on and that the seed alone does not give."""
        return {
            "regularizer": self.regularizer,
            "seed": self.seed,
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self._sums,
            "seconds": self._seconds,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "penalty": self._penalty.state_dict() if self._penalty is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken, bit for bit."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._sums, self._seconds = state["sums"], state["seconds"]
        self._batches = self._shuffle()
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._penalty is not None:
            self._penalty.load_state_dict(state["penalty"])


def _no_sums() -> dict[str, float]:
    return {"loss": 0.0, "correct": 0, "seen": 0, "penalty": 0.0}
