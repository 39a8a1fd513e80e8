"""Random changes of training images; a generator decides, so that they can be repeated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels
_TRIES = 10
_AREAS = (0.08, 1.0)  # Szegedy et al. 2015, section 6: shares of the image's area,
_RATIOS = (3 / 4, 4 / 3)  # and aspect ratios


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors half of the images, left to right."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def crop_and_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to ``padding`` pixels a side, filled with zeros, and flips half.

    The usual augmentation of CIFAR (He et al. 2016, section 4.2): a random part, of the image's own
    size, of the image in a frame of zeros.

    Args:
        images: ``(n, c, h, w)``.
        padding: width of the frame.
        generator: decides.
    """
    n, _, height, width = images.shape
    framed = functional.pad(images, (padding,) * 4)
    shifts = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    rows = (shifts[0][:, None] + torch.arange(height))[:, None, :, None]  # [n, 1, h, 1]
    columns = (shifts[1][:, None] + torch.arange(width))[:, None, None, :]  # [n, 1, 1, w]
    which = torch.arange(n)[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return flip(framed[which, channel, rows, columns], generator)


def draw_boxes(count: int, generator: torch.Generator) -> Callable[[int, int, int], Box]:
    """Draws what random resized crops need, before the images' sizes are known.

    Args:
        count: images.
        generator: decides.

    Returns:
        A function of an image's position, width and height to the box to cut out: of 8 to 100 % of
        the area and an aspect ratio of 3/4 to 4/3 (Szegedy et al. 2015); of ten drawn ones the
        first that fits, else the largest square in the middle.
    """
    numbers = torch.rand(count, _TRIES, 4, generator=generator, dtype=torch.float64).tolist()

    def box(position: int, width: int, height: int) -> Box:
        for area, shape, x, y in numbers[position]:
            wanted = width * height * (_AREAS[0] + area * (_AREAS[1] - _AREAS[0]))
            low, high = (math.log(ratio) for ratio in _RATIOS)
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, upper, left + w, upper + h
        return center_box(width, height)

    return box


def center_box(width: int, height: int, share: float = 1.0) -> Box:
    """The square in the middle whose side is this share of the shorter side."""
    side = share * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side
