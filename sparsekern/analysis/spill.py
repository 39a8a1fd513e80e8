"""Features of a whole data set, kept in memory or in memory-mapped files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .plan import Budget, human_bytes, spill_folder


class Spill:
    """Rows of features of several layers, appended batch by batch and read by range.

    Args:
        dims: features of each layer.
        dtype: to store them in.
        on_disk: in files of a temporary folder, removed by :meth:`close`; else in memory.
        expected: bytes that will be stored, as far as known.
        budget: where files go, and how large they may grow.

    Raises:
        ValueError: if the folder does not exist or has not that much space.
    """

    def __init__(
        self, dims: Sequence[int], dtype: torch.dtype, on_disk: bool, expected: int, budget: Budget
    ) -> None:
        self._dims, self.dtype, self._budget = list(dims), dtype, budget
        self._numpy = np.dtype(str(dtype).removeprefix("torch."))
        self._chunks: list[list[Tensor]] = [[] for _ in dims]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._maps: list[np.memmap] | None = None
        self._starts = [0]
        if on_disk:
            place = spill_folder(budget)
            free = shutil.disk_usage(place).free
            if expected > free:
                raise ValueError(
                    f"{human_bytes(expected)} of features go to files in {place}, which has "
                    f"{human_bytes(free)} left: give another spill_folder"
                )
            self._folder = tempfile.TemporaryDirectory(prefix="sparsekern-", dir=place)
            self._files = [self._path(layer).open("wb") for layer in range(len(dims))]

    def _path(self, layer: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"layer{layer}.bin"

    @property
    def rows(self) -> int:
        """Samples stored."""
        return self._starts[-1]

    @property
    def on_disk(self) -> bool:
        """Whether the features are in files."""
        return self._folder is not None

    def append(self, features: Sequence[Tensor]) -> None:
        """Adds the same samples of every layer.

        Raises:
            ValueError: if the files would outgrow the disk budget.
        """
        n = len(features[0])
        size = (self.rows + n) * sum(self._dims) * self._numpy.itemsize
        if self.on_disk and size > self._budget.disk:
            raise ValueError(
                f"the stored features outgrow disk_budget ({human_bytes(self._budget.disk)}) after "
                f"{self.rows} samples: raise it, or choose fewer layers"
            )
        for layer, x in enumerate(features):
            stored = x.to("cpu", self.dtype)
            if self.on_disk:
                stored.contiguous().numpy().tofile(self._files[layer])
            else:
                # A copy: the caller's buffer holds all layers, these included.
                self._chunks[layer].append(stored.clone() if stored is x else stored)
        self._starts.append(self.rows + n)

    def read(self, layer: int, start: int, stop: int) -> Tensor:
        """``(stop - start, d)`` of one layer, as stored."""
        if self.on_disk:
            return torch.from_numpy(np.array(self._mapped()[layer][start:stop]))
        parts = []
        for at, chunk in zip(self._starts, self._chunks[layer], strict=False):
            if at < stop and at + len(chunk) > start:
                parts.append(chunk[max(0, start - at) : stop - at])
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _mapped(self) -> list[np.memmap]:
        if self._maps is None:
            for file in self._files:
                file.close()
            self._maps = [
                np.memmap(self._path(layer), self._numpy, "r", shape=(self.rows, d))
                for layer, d in enumerate(self._dims)
            ]
        return self._maps

    def close(self) -> None:
        """Removes the files, or drops the features."""
        self._chunks = [[] for _ in self._dims]
        self._maps = None
        if self._folder is not None:
            for file in self._files:
                file.close()
            self._folder.cleanup()
            self._folder = None
