"""A labelled set of images, in memory or in files, that hands out batches ready to train on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .augment import center_box, crop_and_flip, draw_boxes, flip

HELD_OUT_SHARE = 5  # validation takes one image in so many of each class


class ImageSet(Protocol):
    """Labelled images of one size."""

    labels: Tensor
    lazy: bool

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images with these indices, ``(n, c, h, w)`` float32, normalised.

        With a generator they are augmented, and it decides how.
        """


@dataclass(frozen=True)
class Dataset:
    """Images to train on and images to measure on.

    Attributes:
        train: the former.
        held_out: the latter.
        classes: how many there are.
        channels: of an image.
        size: its side, in pixels.
    """

    train: ImageSet
    held_out: ImageSet
    classes: int
    channels: int
    size: int


class MemorySet:
    """Images held as one tensor.

    Args:
        images: ``(n, c, h, w)``, uint8 in 0 to 255 or float32.
        labels: ``(n,)`` int64.
        mean: to be taken from each channel, of values in 0 to 1 where images are uint8; None: the
            images are as they should be.
        deviation: to divide each channel by.
        padding: augmentation shifts images by up to so many pixels and flips half of them; 0:
            images are never augmented.
    """

    lazy = False

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Tensor | None = None,
        deviation: Tensor | None = None,
        padding: int = 0,
    ) -> None:
        self.images, self.labels = images, labels
        self._mean, self._deviation, self._padding = mean, deviation, padding

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :class:`ImageSet`."""
        images = self.images[indices]
        if generator is not None and self._padding:
            images = crop_and_flip(images, self._padding, generator)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if self._mean is not None and self._deviation is not None:
            images = (images - self._mean[:, None, None]) / self._deviation[:, None, None]
        return images


class FileSet:
    """Images that Pillow reads when they are needed, several at once.

    Args:
        paths: the files.
        labels: ``(n,)`` int64.
        size: side that images are brought to.
        mean: of each channel, of values in 0 to 1.
        deviation: of each channel.
        padding: augmentation shifts images of the right size by up to so many pixels and flips half
            of them; None: a random part of random size is cut out, and half of them are flipped.
        resize: side that the shorter side is brought to before the centre is cut out, when images
            are not augmented; None: all files have the right size.
    """

    lazy = True

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        *,
        size: int,
        mean: Tensor,
        deviation: Tensor,
        padding: int | None = None,
        resize: int | None = None,
    ) -> None:
        self.paths, self.labels = list(paths), labels
        self._size, self._mean, self._deviation = size, mean, deviation
        self._padding, self._resize = padding, resize
        self._pool: ThreadPoolExecutor | None = None

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :class:`ImageSet`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        paths = [self.paths[index] for index in indices.tolist()]
        # What is random is drawn here, in order, and not by the threads that read the files.
        cut = None
        if generator is not None and self._padding is None:
            cut = draw_boxes(len(paths), generator)
        images = torch.stack(
            list(self._pool.map(lambda item: self._read(item[1], cut, item[0]), enumerate(paths)))
        )
        if generator is not None:
            if self._padding is None:
                images = flip(images, generator)
            else:
                images = crop_and_flip(images, self._padding, generator)
        values = images.float() / 255
        return (values - self._mean[:, None, None]) / self._deviation[:, None, None]

    def _read(self, path: Path, cut: Any, position: int) -> Tensor:
        image_module = pillow()
        try:
            with image_module.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, image_module.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as an image: {error}") from None
        size = (self._size, self._size)
        if cut is not None:
            box = cut(position, image.width, image.height)
        elif self._resize is not None:
            box = center_box(image.width, image.height, self._size / self._resize)
        elif image.size != size:
            raise ValueError(
                f"{path} is {image.size[0]} x {image.size[1]} pixels: expected {self._size} x "
                f"{self._size}"
            )
        else:
            box = None
        if box is not None:
            image = image.resize(size, image_module.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pillow() -> Any:
    """Pillow's module of images.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ValueError(
            "reading image files needs Pillow, which is not installed: pip install "
            "'sparsekern[data]'"
        ) from None
    return Image


def split_validation(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a fifth of each class to validate on, as the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        held_out[members[order[: len(members) // HELD_OUT_SHARE]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, exact.

    Args:
        images: ``(n, c, h, w)`` uint8.

    Returns:
        Two ``(c,)`` float32 tensors, of values scaled to 0 to 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(mean)
        deviations.append(variance.sqrt().clamp(min=1 / 255))  # images of one colour stay finite
    return torch.stack(means).float(), torch.stack(deviations).float()
