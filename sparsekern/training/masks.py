"""Static random masks with Erdős–Rényi-kernel densities (RST: random sparse training).

Densities after Mocanu et al. 2018 and Evci et al. 2020: the weights a layer keeps are in
proportion to the sum of its dimensions, so that small layers stay denser than large ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def kept_in_all(total: int, sparsity: float) -> int:
    """How many of ``total`` weights a sparsity leaves: ``total - floor(sparsity · total)``."""
    return total - math.floor(sparsity * total)


def erk_counts(shapes: Sequence[Sequence[int]], sparsity: float) -> list[int]:
    """How many weights each layer keeps.

    Args:
        shapes: the shape of each weight: ``(out, in, kh, kw)`` or ``(out, in)``.
        sparsity: the share of zeros over all layers, in ``[0, 1)``.

    Returns:
        One count per layer, in proportion to the sum of the layer's dimensions; a layer that
        would keep more than it has stays dense. The counts add up to ``kept_in_all`` exactly.

    Raises:
        ValueError: for a sparsity outside ``[0, 1)``.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    sizes = [math.prod(shape) for shape in shapes]
    budget = kept_in_all(sum(sizes), sparsity)
    dense: set[int] = set()
    while True:
        sparse = [layer for layer in range(len(sizes)) if layer not in dense]
        left = budget - sum(sizes[layer] for layer in dense)
        weight = sum(sum(shapes[layer]) for layer in sparse)
        # Whole numbers throughout: a share is divmod(left · dimensions, weight), never rounded.
        shares = {layer: divmod(left * sum(shapes[layer]), weight) for layer in sparse}
        overfull = {layer for layer, share in shares.items() if share > (sizes[layer], 0)}
        if not overfull:
            break
        dense |= overfull
    counts = list(sizes)
    for layer, (whole, _) in shares.items():
        counts[layer] = whole
    # The largest remainders get the weights that rounding down left over.
    by_remainder = sorted(shares, key=lambda layer: shares[layer][1], reverse=True)
    for layer in by_remainder[: budget - sum(counts)]:
        counts[layer] += 1
    return counts


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
