"""Weights of the shapes of known networks, for operators that work on all of a model's layers."""

from __future__ import annotations

import torch
from torch import Tensor


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The 53 convolutions and the classifier of ResNet-50: 25.5 million weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return [*shapes, (1000, 2048)]


def weights(quick: bool, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Normal weights at the usual initial scale; with ``quick`` every second layer is left out."""
    generator = torch.Generator().manual_seed(seed)
    shapes = resnet50_shapes()[:: 2 if quick else 1]
    result = []
    for shape in shapes:
        w = torch.randn(shape, generator=generator)
        result.append((w * (2 / w[0].numel()) ** 0.5).to(dtype))
    return result


def count(quick: bool) -> int:
    """How many weights :func:`weights` makes."""
    shapes = resnet50_shapes()[:: 2 if quick else 1]
    return sum(torch.Size(shape).numel() for shape in shapes)
