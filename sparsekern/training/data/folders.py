"""Images as files in folders: TinyImageNet as distributed, and one folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from .images import Dataset, FileSet, pillow, split_validation

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"))
# Of ImageNet's training images, by channel, as everybody uses them.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TINY, _TINY_SIDE, _TINY_PADDING = "tiny-imagenet-200", 64, 4
_LARGER = 256 / 224  # images are brought to so many times the side whose centre is cut out
_Files = tuple[list[Path], Tensor]


def load_tiny_imagenet(seed: int, held_out: str, directory: Path) -> Dataset:
    """Reads TinyImageNet (Stanford's CS231n): 200 classes of 64 x 64 pixels.

    Images to train on are shifted by up to 4 pixels and flipped. Measured is on its validation
    images, for those of its test set have no labels.

    Args:
        seed: decides what is held out for validation.
        held_out: ``"test"``, or ``"validation"`` for a fifth of the training images.
        directory: where the folder ``tiny-imagenet-200`` is.

    Raises:
        ValueError: if it is not there, or damaged, or Pillow is missing.
    """
    pillow()
    home = directory / _TINY
    if not (home / "wnids.txt").exists():
        raise ValueError(
            f"tinyimagenet is not in {directory}: expected {home / 'wnids.txt'}, as "
            "tiny-imagenet-200.zip from http://cs231n.stanford.edu/tiny-imagenet-200.zip unpacks; "
            "put it there, or give its place with --data-dir"
        )
    names = (home / "wnids.txt").read_text(encoding="utf-8").split()
    label_of = {name: label for label, name in enumerate(sorted(names))}
    train = _labelled([(name, home / "train" / name / "images") for name in label_of], label_of)
    return _dataset(
        train,
        _tiny_validation(home, label_of),
        len(label_of),
        _TINY_SIDE,
        seed,
        held_out,
        padding=_TINY_PADDING,
        resize=None,
    )


def _tiny_validation(home: Path, label_of: dict[str, int]) -> _Files:
    listing = home / "val" / "val_annotations.txt"
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{listing} cannot be read: {error.strerror}") from None
    paths, labels = [], []
    for number, line in enumerate(lines, start=1):
        file, name, *_ = [*line.split("\t"), "", ""]
        if name not in label_of:
            raise ValueError(f"{listing}, line {number}: {name!r} is no class of wnids.txt")
        paths.append(home / "val" / "images" / file)
        labels.append(label_of[name])
    return paths, torch.tensor(labels, dtype=torch.int64)


def load_image_folder(seed: int, held_out: str, directory: Path, size: int) -> Dataset:
    """Reads ``train/<class>/*`` and ``val/<class>/*``, as of ImageNet or one's own images.

    Of images to train on a random part is cut out (Szegedy et al. 2015), brought to ``size``, and
    half are flipped; of those to measure on the shorter side is brought to 256/224 of the size and
    the centre cut out.

    Args:
        seed: decides what is held out for validation.
        held_out: ``"test"`` for those in ``val``, or ``"validation"`` for a fifth of ``train``.
        directory: what holds ``train`` and ``val``.
        size: side of the images.

    Raises:
        ValueError: if they are not there, or Pillow is missing.
    """
    pillow()
    for part in ("train", "val"):
        if not (directory / part).is_dir():
            raise ValueError(
                f"imagefolder is not in {directory}: expected {directory / part} with a folder of "
                "images for each class; put it there, or give its place with --data-dir"
            )
    names = sorted(entry.name for entry in os.scandir(directory / "train") if entry.is_dir())
    label_of = {name: label for label, name in enumerate(names)}
    if len(label_of) < 2:
        raise ValueError(
            f"{directory / 'train'} holds {len(label_of)} folders: expected one for each class"
        )
    unknown = {e.name for e in os.scandir(directory / "val") if e.is_dir()} - label_of.keys()
    if unknown:
        raise ValueError(
            f"{directory / 'val' / min(unknown)} is a class that {directory / 'train'} does not "
            "have: both need the same folders"
        )
    train = _labelled([(name, directory / "train" / name) for name in names], label_of)
    present = [name for name in names if (directory / "val" / name).is_dir()]
    other = _labelled([(name, directory / "val" / name) for name in present], label_of)
    return _dataset(
        train,
        other,
        len(label_of),
        size,
        seed,
        held_out,
        padding=None,
        resize=round(size * _LARGER),
    )


def _labelled(folders: list[tuple[str, Path]], label_of: dict[str, int]) -> _Files:
    paths: list[Path] = []
    labels: list[int] = []
    for name, folder in folders:
        try:
            entries = sorted(os.listdir(folder))
        except OSError as error:
            raise ValueError(f"{folder} cannot be read: {error.strerror}") from None
        found = [folder / entry for entry in entries if Path(entry).suffix.lower() in _SUFFIXES]
        if not found:
            raise ValueError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
        paths += found
        labels += [label_of[name]] * len(found)
    return paths, torch.tensor(labels, dtype=torch.int64)


def _dataset(
    train: _Files,
    other: _Files,
    classes: int,
    size: int,
    seed: int,
    held_out: str,
    *,
    padding: int | None,
    resize: int | None,
) -> Dataset:
    paths, labels = train
    if held_out == "validation":
        kept, chosen = split_validation(labels, seed)
        other = [paths[i] for i in chosen.tolist()], labels[chosen]
        paths, labels = [paths[i] for i in kept.tolist()], labels[kept]

    def files(of: _Files) -> FileSet:
        return FileSet(
            *of,
            size=size,
            mean=torch.tensor(_MEAN),
            deviation=torch.tensor(_DEVIATION),
            padding=padding,
            resize=resize,
        )

    return Dataset(
        train=files((paths, labels)), held_out=files(other), classes=classes, channels=3, size=size
    )
