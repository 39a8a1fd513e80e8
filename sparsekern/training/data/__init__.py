"""Images to train on: digits from scikit-learn, or files on disk in their original formats.

Nothing is ever downloaded: a data set that is not there is an error that says where to put it.
"""

from __future__ import annotations

from pathlib import Path

from . import cifar, folders
from .batches import SMALLEST_BATCH, BatchLoader, epoch_batches
from .digits import load_digits
from .images import Dataset, FileSet, ImageSet, MemorySet

__all__ = [
    "SMALLEST_BATCH",
    "BatchLoader",
    "Dataset",
    "FileSet",
    "ImageSet",
    "MemorySet",
    "epoch_batches",
    "load_data",
    "load_digits",
]


def load_data(name: str, *, seed: int, held_out: str, directory: Path, size: int) -> Dataset:
    """Reads a data set.

    Args:
        name: a key of ``catalogue.DATA``.
        seed: decides what is held out for validation; for the digits, which come without a test
            set, the test images too.
        held_out: ``"test"``, or ``"validation"`` for a fifth of the training images, so that
            choices such as beta can be made without a look at the test set.
        directory: where the files are.
        size: side of the images that files are cut to, where they come in any size.

    Raises:
        ValueError: one line, if the files are not there or damaged, or a package is missing.
    """
    if name == "digits":
        return load_digits(seed, held_out)
    if name in cifar.VERSIONS:
        return cifar.load_cifar(name, seed, held_out, directory)
    if name == "tinyimagenet":
        return folders.load_tiny_imagenet(seed, held_out, directory)
    return folders.load_image_folder(seed, held_out, directory, size)
