"""From settings to what is trained: images, network, optimizer, pruner, regularisers."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..regularizers import CKASparsity, HyperSparse, LayerSparsity
from . import data, models
from .methods import called
from .settings import Settings

_LAYER_SPARSITY_STRENGTH = 0.1  # more, on all layers at once, keeps the deep MLP from learning


class Penalty(Protocol):
    """A regulariser: called after the forward, its value is added to the loss."""

    def __call__(self) -> Tensor:
        """The value, with gradient."""

    def state_dict(self) -> dict[str, Any]:
        """What it must remember."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""

    def remove(self) -> None:
        """Takes its hooks off the model."""


def make_data(settings: Settings, seed: int) -> data.Dataset:
    """The images, split as the seed has it; those last asked for are kept.

    Raises:
        ValueError: if they are not there.
    """
    split = seed if settings.data == "digits" or settings.held_out == "validation" else 0
    return _load(
        settings.data, split, settings.held_out, Path(settings.data_dir), settings.image_size
    )


@functools.lru_cache(maxsize=1)
def _load(name: str, seed: int, held_out: str, directory: Path, size: int) -> data.Dataset:
    return data.load_data(name, seed=seed, held_out=held_out, directory=directory, size=size)


def make_model(settings: Settings, dataset: data.Dataset, seed: int) -> nn.Module:
    """The network with the weights of this seed.

    Raises:
        ValueError: if it cannot have this width or take these images.
    """
    return models.build_model(
        settings.model,
        width=settings.width,
        channels=dataset.channels,
        classes=dataset.classes,
        seed=seed,
        size=dataset.size,
    )


def make_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def make_penalties(settings: Settings, names: list[str], model: nn.Module) -> dict[str, Penalty]:
    """The regularisers with these names, hooked to the model.

    Raises:
        ValueError: if one of them does not take one of its options.
    """
    penalties: dict[str, Penalty] = {}
    for name in names:
        given = settings.options.get(name, {})
        if name == "hypersparse":
            penalties[name] = called(name, HyperSparse, model, settings.sparsity, **given)
        elif name == "layersparsity":
            options = {"strength": _LAYER_SPARSITY_STRENGTH, **given}
            penalties[name] = called(name, LayerSparsity, model, **options)
        else:
            augmented = name == "augckasr"
            options = {
                "beta": settings.beta,
                "samples": settings.samples,
                "every": settings.every,
                "estimator": "biased" if augmented else "unbiased",
                "pairs": "all" if augmented else "stage",
                **given,
            }
            groups = models.similarity_groups(settings.model)
            penalties[name] = called(name, CKASparsity, model, groups, **options)
    return penalties


def learning_rate(settings: Settings, epoch: int) -> float:
    """The rate of this epoch of the schedule, counted from 0."""
    epochs = settings.epochs
    if epoch < settings.warmup:
        return settings.lr * (epoch + 1) / settings.warmup
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if settings.schedule == "steps":
        passed = sum(epoch >= share * epochs for share in settings.milestones)
        return settings.lr * settings.gamma**passed
    return settings.lr
