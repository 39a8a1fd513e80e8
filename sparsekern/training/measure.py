"""What is measured on a network: its accuracy, and the similarity between its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops.similarity import cka_matrix
from ..pruning import DeadNeuronRecorder
from .data import ImageSet

_SIMILARITY_IMAGES = 1000
_SIMILARITY_BYTES = 1 << 30  # of features that are held at once


@torch.no_grad()
def accuracy_and_loss(
    model: nn.Module, images: ImageSet, batch_size: int = 512
) -> tuple[float, float]:
    """The share of images classified right, and the mean cross-entropy, in evaluation mode."""
    model.eval()
    right, loss = 0, 0.0
    for indices in torch.arange(len(images.labels)).split(batch_size):
        labels = images.labels[indices]
        logits = model(images.batch(indices))
        right += int((logits.argmax(dim=1) == labels).sum())
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
    return right / len(images.labels), loss / len(images.labels)


def spread(count: int, most: int) -> Tensor:
    """Up to ``most`` indices of ``count`` images, evenly spread, for files are sorted by class."""
    taken = min(count, most)
    return torch.arange(taken) * count // taken


@torch.no_grad()
def dead_neurons(model: nn.Module, images: Tensor) -> dict[str, float] | None:
    """How many ReLU outputs are 0: for all images (static), for some (dynamic), together (total).

    The mean over ReLUs, in evaluation mode. None for a network without any.
    """
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        return None
    model.eval()
    with DeadNeuronRecorder(model, training=False) as recorder:
        model(images)
        return recorder.mean()._asdict()


@torch.no_grad()
def similarity_images(model: nn.Module, names: Sequence[str], images: ImageSet) -> Tensor:
    """Images to compare blocks on: up to 1,000, evenly spread, fewer where features are large."""
    model.eval()
    one = block_features(model, names, images.batch(torch.zeros(1, dtype=torch.int64)))
    room = _SIMILARITY_BYTES // sum(x.numel() * x.element_size() for x in one)
    return images.batch(spread(len(images.labels), min(_SIMILARITY_IMAGES, max(16, room))))


def block_features(model: nn.Module, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """The outputs of the named modules, each ``(n, d)``, in the mode the model is in."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            kept[name] = output.flatten(1)

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [kept[name] for name in names]


@dataclass(frozen=True)
class Similarity:
    """Unbiased linear CKA between the blocks of one network.

    Attributes:
        blocks: their names, in order.
        matrix: ``len(blocks)`` rows of CKA values.
        inside_groups: the mean over pairs of different blocks of the same group.
        all_pairs: the mean over all pairs of different blocks.
    """

    blocks: list[str]
    matrix: list[list[float]]
    inside_groups: float
    all_pairs: float


@torch.no_grad()
def block_similarity(
    model: nn.Module, groups: Sequence[Sequence[str]], images: Tensor
) -> Similarity:
    """Compares all blocks of the groups over all images at once, in evaluation mode."""
    model.eval()
    blocks = [name for group in groups for name in group]
    matrix = cka_matrix(block_features(model, blocks, images))
    group_of = torch.tensor([index for index, group in enumerate(groups) for _ in group])
    upper = torch.ones_like(matrix, dtype=torch.bool).triu(diagonal=1)
    inside = upper & (group_of[:, None] == group_of[None, :])
    return Similarity(
        blocks=blocks,
        matrix=matrix.tolist(),
        inside_groups=matrix[inside].mean().item(),
        all_pairs=matrix[upper].mean().item(),
    )
