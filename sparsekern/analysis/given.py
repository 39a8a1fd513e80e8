"""Comparison of features that were computed before, by whatever framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .compare import CKA
from .result import CKAResult

FeatureMap = Mapping[str, Any]
SUFFIXES = (".npy", ".npz", ".safetensors")


class _Node(nn.Module):
    """A place in the tree of layer names that gives out what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class GivenFeatures(nn.Module):
    """A model whose layers give out features that come with the batch, under their names.

    Args:
        names: of the layers; dots make a tree, as in any model.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names
        for name in names:
            node: nn.Module = self
            for part in name.split("."):
                if part not in node._modules:
                    node.add_module(part, _Node())
                child = node._modules[part]
                assert child is not None
                node = child

    def forward(self, features: Mapping[str, Tensor]) -> None:
        """Passes every layer's features through its place."""
        for name in self._names:
            self.get_submodule(name)(features[name])


def compare_features(
    features1: FeatureMap,
    features2: FeatureMap | None = None,
    *,
    batch_size: int = 256,
    mode: str = "exact",
    max_samples: int | None = None,
    progress: bool = True,
    **options: Any,
) -> CKAResult:
    """CKA between layers whose features are at hand: tensors or numpy arrays, also memory-mapped.

    Args:
        features1: layer name to ``(n, ...)`` features.
        features2: the same for the columns; None compares ``features1`` with itself.
        batch_size: samples read at a time; in the minibatch mode, those of a batch.
        mode: as in :class:`~sparsekern.analysis.CKA`.
        max_samples: as in ``CKA.compare``.
        progress: as in ``CKA.compare``.
        options: further arguments of :class:`~sparsekern.analysis.CKA`.

    Returns:
        The result.

    Raises:
        ValueError: for no layers, or layers that differ in their number of samples.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    maps = [features1] if features2 is None else [features1, features2]
    counts: dict[str, int] = {}
    for number, features in enumerate(maps, 1):
        if not isinstance(features, Mapping) or not features:
            raise ValueError(
                f"features{number} must map at least one layer's name to features of shape (n, ...)"
            )
        for name, value in features.items():
            if not getattr(value, "shape", ()):
                raise ValueError(f"features{number}[{name!r}] has no shape (n, ...)")
            counts[f"features{number}[{name!r}]"] = len(value)
    samples = next(iter(counts.values()))
    for label, count in counts.items():
        if count != samples:
            raise ValueError(
                f"{label} has {count} samples and {next(iter(counts))} {samples}: all features "
                "must come from the same samples"
            )
    models = [GivenFeatures(list(features)).eval() for features in maps]
    options.setdefault("names", ("features 1", "features 1" if len(maps) == 1 else "features 2"))
    for number, features in enumerate(maps, 1):
        options.setdefault(f"layers{number}", list(features))
    comparison = CKA(*models, mode=mode, inputs=lambda batch: (batch,), **options)
    first, *second = (_Slices(features, samples, batch_size) for features in maps)
    other = second[0] if second else None
    return comparison.compare(first, other, max_samples=max_samples, progress=progress)


class _Slices:
    """Batches of consecutive samples of every layer."""

    def __init__(self, features: FeatureMap, samples: int, size: int) -> None:
        self._features, self._samples = features, samples
        self.batch_size = size
        self.sampler = range(samples)  # tells how many samples there are

    def __len__(self) -> int:
        return -(-self._samples // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, self._samples, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield {name: _tensor(value[part]) for name, value in self._features.items()}


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))


def load_features(path: str | Path) -> dict[str, Any]:
    """Layers by name from a file of features.

    Args:
        path: ``.npy`` (one layer, named after the file; memory-mapped), ``.npz`` or
            ``.safetensors`` (a layer for each array).

    Raises:
        ValueError: if the file is missing or damaged, of another kind, or needs a package that is
            not installed.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file} is no file of features: expected {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        if file.suffix == ".npy":
            return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False)}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(
            f"{file} needs the package safetensors, which is not installed: pip install safetensors"
        ) from None
    try:
        tensors: dict[str, Any] = load_file(file)
    except Exception as error:  # safetensors has errors of its own
        raise ValueError(f"{file} cannot be read: {error}") from None
    return tensors
