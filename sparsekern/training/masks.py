"""Static random masks with Erdős–Rényi-kernel densities (RST: random sparse training).

Densities after Mocanu et al. 2018 and Evci et al. 2020: the weights a layer keeps are in
proportion to the sum of its dimensions, so that small layers stay denser than large ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..nn.densities import erk_counts


def random_masks(weights: Mapping[str, Tensor], sparsity: float, seed: int) -> dict[str, Tensor]:
    """Draws one mask for each weight: bool, of its shape, with exactly the ERK count of ones."""
    counts = erk_counts([weight.shape for weight in weights.values()], sparsity)
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for (name, weight), count in zip(weights.items(), counts, strict=True):
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(weight.numel(), generator=generator)[:count]] = True
        masks[name] = mask.reshape(weight.shape).to(weight.device)
    return masks


class StaticMasks:
    """Random masks over all convolution and linear weights of a model, fixed for its training.

    Args:
        model: masked at once; biases and batch norm stay dense.
        sparsity: the share of zeros over all masked weights.
        seed: decides which weights stay.
    """

    def __init__(self, model: nn.Module, sparsity: float, seed: int) -> None:
        self._weights = {
            f"{name}.weight": module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }
        self.masks = random_masks(self._weights, sparsity, seed)
        self._pruned = {name: ~mask for name, mask in self.masks.items()}
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Sets the masked weights to exactly 0; called after every optimiser step."""
        for name, weight in self._weights.items():
            weight.masked_fill_(self._pruned[name], 0)

    @property
    def total(self) -> int:
        """How many weights are under a mask."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def kept(self) -> int:
        """How many of them are kept."""
        return sum(int(mask.sum()) for mask in self.masks.values())
