"""Models and data by name, for the command line."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..training import models
from ..training.building import make_data, make_model
from ..training.catalogue import DATA, MODELS
from ..training.data import ImageSet, load_data
from ..training.store import CHECKPOINT, CONFIG, WEIGHTS, stored_settings
from .command import HELP_MODEL
from .given import SUFFIXES, load_features

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# Means and deviations of ImageNet's training images, which torchvision's and timm's models expect.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_model(
    source: str, *, pretrained: bool, shape: tuple[int, int, int], seed: int
) -> nn.Module:
    """The model that a text on the command line means, in evaluation mode.

    Args:
        source: see ``HELP_MODEL``.
        pretrained: with the weights that the library has, where it has some.
        shape: channels, size and classes of the data, for networks of ``sparsekern train``.
        seed: of their weights.

    Raises:
        ValueError: one line that says what is missing.
    """
    if ":" in source:
        model = _from_factory(source)
    elif source.split("/")[0] in ("torchvision", "timm", "transformers") and "/" in source:
        library, name = source.split("/", 1)
        model = _from_library(library, name, pretrained)
    elif source in MODELS:
        channels, size, classes = shape
        model = models.build_model(source, channels=channels, classes=classes, seed=seed, size=size)
    elif Path(source).is_dir() or Path(source).suffix == ".pt":
        model = _from_training(Path(source))
    else:
        raise ValueError(f"{source!r} is no model: expected {HELP_MODEL}")
    return model.eval()


def _from_factory(source: str) -> nn.Module:
    module_name, _, attribute = source.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{source!r}: {error}") from None
    factory = getattr(module, attribute, None)
    if factory is None:
        raise ValueError(f"{source!r}: {module_name} has no {attribute!r}")
    model = factory if isinstance(factory, nn.Module) else factory()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source!r} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _from_library(library: str, name: str, pretrained: bool) -> nn.Module:
    try:
        package: Any = importlib.import_module(
            "torchvision.models" if library == "torchvision" else library
        )
    except ImportError:
        raise ValueError(
            f"{library}/{name} needs {library}, which is not installed: pip install {library}"
        ) from None
    try:
        if library == "torchvision":
            model = package.get_model(name, weights="DEFAULT" if pretrained else None)
        elif library == "timm":
            model = package.create_model(name, pretrained=pretrained)
        elif pretrained:
            model = package.AutoModel.from_pretrained(name)
        else:
            model = package.AutoModel.from_config(package.AutoConfig.from_pretrained(name))
    except Exception as error:  # each library has errors of its own for a name it does not know
        raise ValueError(f"{library}/{name}: {error}") from None
    result: nn.Module = model
    return result


def _from_training(path: Path) -> nn.Module:
    if path.is_dir():
        path = _only_weights(path)
    try:
        state = torch.load(path, weights_only=True)
        seed, weights = state["seed"], state["model"]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    directory = path.parent.parent if path.parent.name == WEIGHTS else path.parent
    if not (directory / CONFIG).exists():
        raise ValueError(f"{path} is not of sparsekern train: {directory} holds no {CONFIG}")
    settings = stored_settings(directory)
    model = make_model(settings, make_data(settings, seed), seed)
    model.load_state_dict(weights)
    return model


def _only_weights(directory: Path) -> Path:
    """The one file of weights that a training has left, or its checkpoint."""
    found = sorted((directory / WEIGHTS).glob("*.pt"))
    if (directory / CHECKPOINT).exists():
        found.append(directory / CHECKPOINT)
    if not found:
        raise ValueError(
            f"{directory} holds neither {WEIGHTS}/ nor {CHECKPOINT}: expected the --out of "
            "sparsekern train"
        )
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise ValueError(f"{directory} holds several networks: give one of {listed}")
    return found[0]


def load_batches(
    source: str, *, directory: Path, batch_size: int, image_size: int
) -> tuple[Iterable[Any], tuple[int, int, int]]:
    """Batches of the data that a text on the command line means.

    Args:
        source: a name of ``sparsekern train``'s data (``digits``), a folder of images in any
            depth, or a file of inputs.
        directory: where the files of named data are.
        batch_size: samples in a batch.
        image_size: side that images of a folder are resized to.

    Returns:
        An iterable of batches; and channels, size and classes of images (1, 0, 1000 for files).

    Raises:
        ValueError: one line that says what is missing.
    """
    if source in DATA:
        found = load_data(source, seed=0, held_out="test", directory=directory, size=image_size)
        shape = found.channels, found.size, found.classes
        return _Indexed(found.held_out, len(found.held_out.labels), batch_size), shape
    path = Path(source)
    if path.suffix in SUFFIXES:
        arrays = {name: _as_tensor(value) for name, value in load_features(path).items()}
        return _Arrays(arrays, batch_size), (1, 0, 1000)
    if path.is_dir():
        images = _Folder(path, image_size)
        return _Indexed(images, len(images), batch_size), (3, image_size, 1000)
    raise ValueError(
        f"--data must be one of {', '.join(DATA)}, a folder of images, or a file "
        f"({', '.join(SUFFIXES)}), got {source!r}"
    )


class _Indexed:
    """Batches of consecutive images of a set."""

    def __init__(self, images: ImageSet | _Folder, count: int, batch_size: int) -> None:
        self._images, self.batch_size = images, batch_size
        self.sampler = range(count)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for indices in torch.arange(len(self.sampler)).split(self.batch_size):
            yield self._images.batch(indices)


class _Arrays:
    """Batches of consecutive rows: a tensor of the only array, else a mapping by name."""

    def __init__(self, arrays: dict[str, Tensor], batch_size: int) -> None:
        counts = {name: len(value) for name, value in arrays.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the arrays of --data differ in their number of samples: {counts}")
        self._arrays, self.batch_size = arrays, batch_size
        self.sampler = range(next(iter(counts.values())))

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.sampler), self.batch_size):
            batch = {k: v[start : start + self.batch_size] for k, v in self._arrays.items()}
            yield next(iter(batch.values())) if len(batch) == 1 else batch


class _Folder:
    """Images of a folder in any depth, in the order of their paths, resized and normalised."""

    def __init__(self, folder: Path, size: int) -> None:
        try:
            from PIL import Image
        except ImportError:
            raise ValueError(
                "images of a folder need Pillow, which is not installed: pip install Pillow"
            ) from None
        self._open, self._size = Image.open, size
        self._paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES)
        if not self._paths:
            raise ValueError(f"{folder} holds no images ({', '.join(_IMAGES)})")

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(n, 3, size, size)``: the shorter side resized to 8/7 of the size, the middle cut."""
        return torch.stack([self._read(self._paths[int(index)]) for index in indices])

    def _read(self, path: Path) -> Tensor:
        try:
            image = self._open(path).convert("RGB")
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        scale = self._size * 8 / 7 / min(image.size)
        width, height = (max(self._size, round(side * scale)) for side in image.size)
        image = image.resize((width, height))
        left, top = (width - self._size) // 2, (height - self._size) // 2
        image = image.crop((left, top, left + self._size, top + self._size))
        raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        values = raw.view(self._size, self._size, 3).permute(2, 0, 1).float() / 255
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (_MEAN, _DEVIATION))
        return (values - mean) / deviation


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(value.copy())
