"""One training run: a seed, a variant, and a state that can be saved between any two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..pruning import ART, merge_layers
from ..regularizers import HyperSparse, LayerSparsity
from . import models
from .building import (
    learning_rate,
    make_data,
    make_model,
    make_optimizer,
    make_penalties,
)
from .data import BatchLoader
from .measure import accuracy_and_loss, block_similarity, dead_neurons, similarity_images, spread
from .methods import AnyPruner, base_of, make_pruner, schedule_epoch, total_epochs
from .settings import AP, NONE, Settings

Record = dict[str, Any]
_DEAD_NEURON_IMAGES = 256


class TrainingRun:
    """Trains one network, a step at a time.

    Everything random (split, masks, initial weights, order and augmentation of the images) is a
    function of the seed, so that runs of one seed differ in nothing but the variant and can be
    compared in pairs.

    Args:
        settings: the experiment.
        variant: one of ``settings.variants``.
        seed: decides everything random.
    """

    def __init__(self, settings: Settings, variant: str, seed: int) -> None:
        self.variant = variant
        self.seed = seed
        self._settings = settings
        self.data = make_data(settings, seed)
        self.model = make_model(settings, self.data, seed)
        self._optimizer = make_optimizer(settings, self.model)
        self._groups = models.similarity_groups(settings.model)
        parts = variant.split("+")
        names = [name for name in parts if name not in (NONE, AP)]
        self.penalties = make_penalties(settings, names, self.model)
        self._loader = BatchLoader(self.data.train, settings.batch_size, seed)
        self.pruner = make_pruner(settings, seed, self._loader, ap=AP in parts)
        if self.pruner is not None:
            self._attach(self.pruner)
        self._drops_out = any(isinstance(module, nn.Dropout) for module in self.model.modules())
        self.epoch = 0
        self.batch = 0
        self._sums = _no_sums()
        self._seconds = 0.0
        self._running_loss = math.nan

    def _attach(self, pruner: AnyPruner) -> None:
        try:
            pruner.attach(self.model, self._optimizer)
        except ValueError as error:
            raise ValueError(f"--method {self._settings.method}: {error}") from None

    @property
    def epochs(self) -> int:
        """How many epochs there are in all, as far as is known yet: ART may end sooner."""
        return total_epochs(self._settings, self.pruner)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.epochs

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return len(self._loader)

    @property
    def steps_done(self) -> int:
        """Batches trained on since the first epoch."""
        return self.epoch * self.steps_per_epoch + self.batch

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
        images, labels = self._loader.get(self.epoch, self.batch)
        self._set_learning_rate()
        self.model.train()
        with self._dropout():
            logits = self.model(images)
        loss = functional.cross_entropy(
            logits, labels, label_smoothing=self._settings.label_smoothing
        )
        penalty = torch.zeros(())
        for regularizer in self.penalties.values():
            # Layer sparsity acts through its proximal step instead, which makes exact zeros.
            if not isinstance(regularizer, LayerSparsity):
                penalty = penalty + regularizer()
        base = base_of(self.pruner)
        if isinstance(base, ART):
            penalty = penalty + base.penalty()
        self._check_finite(loss, penalty)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss + penalty)
        self._optimizer.step()
        for regularizer in self.penalties.values():
            if isinstance(regularizer, LayerSparsity):
                regularizer.prox_(self._optimizer.param_groups[0]["lr"])
        if self.pruner is not None:
            self.pruner.step()
        self._tally(logits.detach(), labels, loss.item(), penalty.item())
        self.batch += 1
        self._seconds += time.perf_counter() - start
        return self._end_epoch() if self.batch == self.steps_per_epoch else None

    def _set_learning_rate(self) -> None:
        epoch = schedule_epoch(self._settings, self.pruner, self.epoch)
        rate = learning_rate(self._settings, epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Makes dropout a function of the seed and the step, wherever training was taken up."""
        if not self._drops_out:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed << 32) + self.steps_done)
            yield

    def _check_finite(self, loss: Tensor, penalty: Tensor) -> None:
        if not math.isfinite(loss.item() + penalty.item()):
            raise ValueError(
                f"the loss is no longer finite in epoch {self.epoch + 1} of seed {self.seed}: "
                f"choose a lower --lr{' or a weaker regulariser' if self.penalties else ''}"
            )

    def _tally(self, logits: Tensor, labels: Tensor, loss: float, penalty: float) -> None:
        self._sums["loss"] += loss * len(labels)
        self._sums["correct"] += int((logits.argmax(dim=1) == labels).sum())
        self._sums["seen"] += len(labels)
        self._sums["penalty"] += penalty
        self._running_loss = self._sums["loss"] / self._sums["seen"]

    def _end_epoch(self) -> Record:
        sums = self._sums
        # Measured before the method may prune and rewind: the network that was trained.
        record = {
            "kind": "epoch",
            "regularizer": self.variant,
            "seed": self.seed,
            "epoch": self.epoch + 1,
            "lr": self._optimizer.param_groups[0]["lr"],
            "train_loss": sums["loss"] / sums["seen"],
            "train_accuracy": sums["correct"] / sums["seen"],
            "penalty": sums["penalty"] / self.batch,
            **self._held_out(),
            "sparsity": self.pruner.sparsity if self.pruner is not None else 0.0,
        }
        for regularizer in self.penalties.values():
            if isinstance(regularizer, HyperSparse):
                regularizer.epoch()
        if self.pruner is not None:
            self.pruner.epoch()
        self.epoch += 1
        self.batch = 0
        self._sums = _no_sums()
        return record

    def _held_out(self) -> Record:
        images = self.data.held_out
        accuracy, loss = accuracy_and_loss(self.model, images)
        some = images.batch(spread(len(images.labels), _DEAD_NEURON_IMAGES))
        return {"loss": loss, "accuracy": accuracy, "dead_neurons": dead_neurons(self.model, some)}

    def result(self) -> Record:
        """What the trained network achieves: the accuracy of its last epoch, and its CKA."""
        blocks = [name for group in self._groups for name in group]
        images = similarity_images(self.model, blocks, self.data.held_out)
        similarity = block_similarity(self.model, self._groups, images)
        layers = self.pruner.kept_per_layer if self.pruner is not None else {}
        return {
            "kind": "run",
            "regularizer": self.variant,
            "method": self._settings.method,
            "seed": self.seed,
            **self._held_out(),
            "interlayer_cka": similarity.inside_groups,
            "interlayer_cka_all": similarity.all_pairs,
            "blocks": similarity.blocks,
            "cka": similarity.matrix,
            "weights": self.pruner.total if self.pruner is not None else 0,
            "kept": self.pruner.kept if self.pruner is not None else 0,
            "layers": {name: list(counts) for name, counts in layers.items()},
            **self._merged(),
            **self._searched(),
            "seconds": round(self._seconds, 3),
        }

    def _merged(self) -> Record:
        """With layer sparsity: the layers that can be merged away, and the network without them."""
        if "layersparsity" not in self.penalties:
            return {}
        try:
            smaller, report = merge_layers(self.model)
        except ValueError as error:  # a network that cannot be traced
            return {"merged": {"count": 0, "reason": str(error)}}
        accuracy, _ = accuracy_and_loss(smaller, self.data.held_out)
        return {
            "merged": {
                "count": len(report.merged),
                "layers": [name for name, _ in report.merged],
                "parameters_before": report.parameters_before,
                "parameters": report.parameters_after,
                "accuracy": accuracy,
            }
        }

    def _searched(self) -> Record:
        """With ART: by epoch the training accuracy after pruning and before, and the choice."""
        base = base_of(self.pruner)
        if not isinstance(base, ART):
            return {}
        history = [list(pair) for pair in base.history]
        return {"art": {"history": history, "candidate": base.rule.candidate}}

    def close(self) -> None:
        """Takes the hooks off the model and the optimizer, and ends reading ahead."""
        for penalty in self.penalties.values():
            penalty.remove()
        if self.pruner is not None:
            self.pruner.remove()
        self._loader.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on and that the seed alone does not give."""
        return {
            "regularizer": self.variant,
            "seed": self.seed,
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self._sums,
            "seconds": self._seconds,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "penalties": {name: p.state_dict() for name, p in self.penalties.items()},
            "pruner": self.pruner.state_dict() if self.pruner is not None else None,
        }

    def weights(self) -> dict[str, Any]:
        """Of ``state_dict`` what makes the network: which run it is, and its parameters."""
        return {
            "regularizer": self.variant,
            "seed": self.seed,
            "model": self.model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken, bit for bit."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._sums, self._seconds = state["sums"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name, penalty in self.penalties.items():
            penalty.load_state_dict(state["penalties"][name])
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])


def _no_sums() -> dict[str, float]:
    return {"loss": 0.0, "correct": 0, "seen": 0, "penalty": 0.0}
