"""The order of the images, and batches read ahead; both can be taken up at any step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .images import ImageSet

# A last batch of fewer images than this is left out: batch norm and unbiased HSIC need more.
SMALLEST_BATCH = 4


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


class BatchLoader:
    """Reads augmented batches, those of files one ahead of training.

    What is random in a batch follows from the seed, the epoch and the batch alone.

    Args:
        images: to read from.
        batch_size: images in a batch.
        seed: decides the order and the augmentation.

    Attributes:
        images: what it reads from.
    """

    def __init__(self, images: ImageSet, batch_size: int, seed: int) -> None:
        self.images, self._batch_size, self._seed = images, batch_size, seed
        self._pool = ThreadPoolExecutor(1) if images.lazy else None
        self._ahead: tuple[tuple[int, int], Future[Tensor]] | None = None
        self._order: tuple[int, list[Tensor]] = (-1, [])

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self._batches(0))

    def get(self, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """The images and labels of one batch."""
        indices = self._batches(epoch)[batch]
        if self._ahead is not None and self._ahead[0] == (epoch, batch):
            images = self._ahead[1].result()
        else:
            images = self._read(epoch, batch, indices)
        if self._pool is not None and batch + 1 < len(self._batches(epoch)):
            following = self._batches(epoch)[batch + 1]
            future = self._pool.submit(self._read, epoch, batch + 1, following)
            self._ahead = (epoch, batch + 1), future
        return images, self.images.labels[indices]

    def close(self) -> None:
        """Ends the thread that reads ahead."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _batches(self, epoch: int) -> list[Tensor]:
        if self._order[0] != epoch:
            count = len(self.images.labels)
            self._order = epoch, epoch_batches(count, self._batch_size, self._seed, epoch)
        return self._order[1]

    def _read(self, epoch: int, batch: int, indices: Tensor) -> Tensor:
        mixed = np.random.SeedSequence((self._seed, epoch, batch)).generate_state(1, np.uint64)
        return self.images.batch(indices, torch.Generator().manual_seed(int(mixed[0])))
