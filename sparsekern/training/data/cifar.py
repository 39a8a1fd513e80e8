"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the two forms that they are distributed in.

The "python version" is made of pickles, and a pickle can run any code; these are read by an
unpickler that knows numpy's arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .images import Dataset, MemorySet, channel_statistics, split_validation

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SIDE = 32
_VALUES = 3 * _SIDE**2
_PADDING = 4


@dataclass(frozen=True)
class _Version:
    """How one of the two data sets is laid out.

    Attributes:
        classes: how many labels.
        folder: of the python version.
        train: its files to train on.
        test: its file to test on.
        label: the key of its labels.
        binary_folder: of the binary version, whose files have the same names and end in .bin.
        label_bytes: before the pixels of an image; the last of them is the label.
        archives: the two archives' names.
    """

    classes: int
    folder: str
    train: tuple[str, ...]
    test: str
    label: bytes
    binary_folder: str
    label_bytes: int
    archives: tuple[str, str]


VERSIONS = {
    "cifar10": _Version(
        10,
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        b"labels",
        "cifar-10-batches-bin",
        1,
        ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    ),
    "cifar100": _Version(
        100,
        "cifar-100-python",
        ("train",),
        "test",
        b"fine_labels",
        "cifar-100-binary",
        2,
        ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    ),
}


def load_cifar(name: str, seed: int, held_out: str, directory: Path) -> Dataset:
    """Reads CIFAR-10 or CIFAR-100.

    Images are normalised by channel with the training images' statistics; those to train on are
    shifted by up to 4 pixels and flipped (He et al. 2016, section 4.2).

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        seed: decides what is held out for validation.
        held_out: ``"test"`` or ``"validation"``.
        directory: where the folders of the archives are.

    Raises:
        ValueError: if they are not there, or damaged.
    """
    version = VERSIONS[name]
    forms = (
        (directory / version.folder, _read_pickle, ""),
        (directory / version.binary_folder, _read_binary, ".bin"),
    )
    found = next((form for form in forms if form[0].is_dir()), None)
    if found is None:
        raise ValueError(_not_found(name, version, directory))
    folder, read, ending = found
    train_files = [folder / f"{file}{ending}" for file in version.train]
    images, labels = _tensors([read(path, version) for path in train_files])
    if held_out == "validation":
        kept, other = split_validation(labels, seed)
        other_images, other_labels = images[other], labels[other]
        images, labels = images[kept], labels[kept]
    else:
        other_images, other_labels = _tensors([read(folder / f"{version.test}{ending}", version)])
    mean, deviation = channel_statistics(images)
    return Dataset(
        train=MemorySet(images, labels, mean=mean, deviation=deviation, padding=_PADDING),
        held_out=MemorySet(other_images, other_labels, mean=mean, deviation=deviation),
        classes=version.classes,
        channels=3,
        size=_SIDE,
    )


def _not_found(name: str, version: _Version, directory: Path) -> str:
    packed = [archive for archive in version.archives if (directory / archive).exists()]
    if packed:
        return f"{directory / packed[0]} is still packed: unpack it there with tar xzf {packed[0]}"
    return (
        f"{name} is not in {directory}: expected {directory / version.folder} or "
        f"{directory / version.binary_folder}, as {' and '.join(version.archives)} from {HOME} "
        "unpack; put one there, or give its place with --data-dir"
    )


def _tensors(parts: list[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[Tensor, Tensor]:
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, _SIDE, _SIDE)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; unpack the archive again"
        raise ValueError(message) from None


def _read_pickle(path: Path, version: _Version) -> tuple[NDArray[Any], NDArray[Any]]:
    file = io.BytesIO(_read_bytes(path))
    try:
        content = _ArrayUnpickler(file, encoding="bytes").load()
        images, labels = np.asarray(content[b"data"]), np.asarray(content[version.label])
    except Exception as error:  # damaged pickles fail in every way
        raise ValueError(
            f"{path} is no batch of this data set ({type(error).__name__}: {error}): unpack the "
            "archive again"
        ) from None
    return _checked(path, images, labels, version)


def _read_binary(path: Path, version: _Version) -> tuple[NDArray[Any], NDArray[Any]]:
    content = np.frombuffer(_read_bytes(path), dtype=np.uint8)
    record = version.label_bytes + _VALUES
    if content.size == 0 or content.size % record:
        raise ValueError(
            f"{path} has {content.size} bytes, no multiple of the {record} of an image: unpack the "
            "archive again"
        )
    rows = content.reshape(-1, record)
    return _checked(path, rows[:, version.label_bytes :], rows[:, version.label_bytes - 1], version)


def _checked(
    path: Path, images: NDArray[Any], labels: NDArray[Any], version: _Version
) -> tuple[NDArray[Any], NDArray[Any]]:
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _VALUES:
        raise ValueError(
            f"{path} holds {images.dtype} images of shape {images.shape}: expected uint8 of shape "
            f"(n, {_VALUES})"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path} holds {len(images)} images and labels of shape {labels.shape} and dtype "
            f"{labels.dtype}: expected an integer for each image"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < version.classes:
        raise ValueError(
            f"{path} holds labels from {labels.min()} to {labels.max()}: expected 0 to "
            f"{version.classes - 1}"
        )
    return images, labels


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # What pickles of arrays name under both of its places; numpy tells it by itself.
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes in the old protocol
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy's arrays, containers, numbers and strings; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no batch of images needs"
            )
        return _ALLOWED[module, name]
