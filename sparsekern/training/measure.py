"""What is measured on a network: its accuracy, and the similarity between its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops.similarity import cka_matrix


@torch.no_grad()
def accuracy_and_loss(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of images classified right, and the mean cross-entropy, in evaluation mode."""
    model.eval()
    logits = model(images)
    right = int((logits.argmax(dim=1) == labels).sum())
    return right / len(labels), functional.cross_entropy(logits, labels).item()


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
