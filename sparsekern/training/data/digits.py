"""Real images that need no download: scikit-learn's handwritten digits."""

from __future__ import annotations

import torch

from .images import Dataset, MemorySet


def load_digits(seed: int, held_out: str = "test") -> Dataset:
    """1,797 images of 8 x 8 pixels, split by class and seed: 80 % to train on, 20 % to measure on.

    Values are standardised with mean and deviation over the training images; the digits are never
    augmented: shifted or mirrored ones would no longer be of their kind.

    Args:
        seed: decides the split.
        held_out: ``"test"``, or ``"validation"`` for a fifth of the training images.

    Raises:
        ValueError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError(
            "the digits data set comes with scikit-learn, which is not installed: "
            "pip install 'sparsekern[data]'"
        ) from None
    images, labels = load(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    if held_out == "validation":
        images, labels = parts[0], parts[2]
        parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    train, other = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, other_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    mean, deviation = train.mean(), train.std()
    return Dataset(
        train=MemorySet(((train - mean) / deviation).reshape(-1, 1, 8, 8), train_labels),
        held_out=MemorySet(((other - mean) / deviation).reshape(-1, 1, 8, 8), other_labels),
        classes=10,
        channels=1,
        size=8,
    )
