"""Real images that need no download: scikit-learn's handwritten digits, in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A last batch of fewer images than this is left out: batch norm and unbiased HSIC need more.
SMALLEST_BATCH = 4


@dataclass(frozen=True)
class Digits:
    """1,797 images of 10 classes, split and standardised.

    Attributes:
        train_images: ``(n, 1, 8, 8)`` float32, zero mean and unit variance over the training set.
        train_labels: ``(n,)`` int64.
        held_out_images: ``(m, 1, 8, 8)``, scaled with the training set's mean and deviation.
        held_out_labels: ``(m,)``.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load_digits(seed: int, held_out: str = "test") -> Digits:
    """Splits the digits by class and seed, 80 % to train on and 20 % to measure on.

    Args:
        seed: decides the split.
        held_out: ``"test"``, or ``"validation"`` for a fifth of the training images, so that
            choices such as beta can be made without a look at the test set.

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
    mean, deviation = train.mean(), train.std()
    return Digits(
        train_images=((train - mean) / deviation).reshape(-1, 1, 8, 8),
        train_labels=torch.tensor(parts[2], dtype=torch.int64),
        held_out_images=((other - mean) / deviation).reshape(-1, 1, 8, 8),
        held_out_labels=torch.tensor(parts[3], dtype=torch.int64),
    )


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The shuffled indices of every batch of one epoch.

    A function of its arguments alone, so a run that goes on in the middle of an epoch sees the
    batches it would have seen.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    batches = list(torch.split(torch.randperm(count, generator=generator), batch_size))
    if len(batches) > 1 and len(batches[-1]) < SMALLEST_BATCH:
        batches.pop()
    return batches
