"""Other packages: which are there, and adapters for those that compute CKA.

Each peer is measured twice where it offers two ways: through the entry point that its users call,
and through the fastest combination of the functions it exposes. A package that is not installed
is reported as absent.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .baselines import Groups, normalise, stacked_grams

# What is imported, and what is installed, for each peer; their versions are in every result.
PACKAGES = {
    "torch_cka": "torch_cka",
    "ckatorch": "ckatorch",
    "pytorch_cka": "cka",
    "scipy": "scipy",
}
DISTRIBUTIONS = {
    "torch_cka": "torch-cka",
    "ckatorch": "ckatorch",
    "pytorch_cka": "pytorch-cka",
    "scipy": "scipy",
}


@functools.cache
def missing_reason(peer: str) -> str:
    """Why a peer cannot be measured here, or an empty string where it can."""
    distribution = DISTRIBUTIONS[peer]
    try:
        importlib.metadata.version(distribution)
        importlib.import_module(PACKAGES[peer])
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} is not installed"
    except ImportError as error:
        return f"{distribution} does not import: {error}"
    return ""


def version(peer: str) -> str:
    """The installed version of a peer, or an empty string."""
    try:
        return importlib.metadata.version(DISTRIBUTIONS[peer])
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides progress bars and hints: they would cut through the table."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class _Taps(nn.Module):
    """A model whose layers give out features that were computed before."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.taps = nn.ModuleList(nn.Identity() for _ in range(count))
        self.features: Sequence[Tensor] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Passes each feature tensor through its tap."""
        for tap, feature in zip(self.taps, self.features, strict=True):
            tap(feature)
        return x

    def names(self) -> list[str]:
        """The taps by name, for an interface that selects layers."""
        return [f"taps.{index}" for index in range(len(self.taps))]


@functools.cache
def _torch_cka_comparison(count: int) -> tuple[_Taps, Any]:
    """A model of ``count`` taps, and torch_cka's comparison of it with itself."""
    module = importlib.import_module("torch_cka")
    model = _Taps(count)
    with quiet():
        comparison = module.CKA(
            model, model, model1_layers=model.names(), model2_layers=model.names()
        )
    return model, comparison


def torch_cka_matrix(xs: Sequence[Tensor]) -> Tensor:
    """``torch_cka.CKA(...).compare(loader)``, the package's interface."""
    model, comparison = _torch_cka_comparison(len(xs))
    model.features = xs
    loader = DataLoader(TensorDataset(torch.zeros(1, 1)), batch_size=1)
    with quiet():
        comparison.compare(loader)
    model.features = ()  # the comparison stays; the features do not
    result: Tensor = comparison.export()["CKA"]
    return result


def torch_cka_pair(x: Tensor, y: Tensor) -> Tensor:
    """torch_cka's interface for one pair: two models of one layer each."""
    module = importlib.import_module("torch_cka")
    first, second = _Taps(1), _Taps(1)
    first.features, second.features = (x,), (y,)
    loader = DataLoader(TensorDataset(torch.zeros(1, 1)), batch_size=1)
    with quiet():
        comparison = module.CKA(
            first, second, model1_layers=first.names(), model2_layers=second.names()
        )
        comparison.compare(loader)
    result: Tensor = comparison.export()["CKA"]
    return result.reshape(())


def torch_cka_hsic_matrix(xs: Sequence[Tensor]) -> Tensor:
    """torch_cka's HSIC per unordered pair, on Gram matrices that are made once."""
    module = importlib.import_module("torch_cka")
    with quiet():
        hsic = module.CKA(nn.Identity(), nn.Identity())._HSIC
    grams = stacked_grams(xs)
    grams.diagonal(dim1=1, dim2=2).zero_()
    return normalise(_fill_symmetric(grams, hsic))


def _fill_symmetric(grams: Tensor, hsic: Callable[[Tensor, Tensor], Any]) -> Tensor:
    count = len(grams)
    result = grams.new_zeros(count, count)
    for i in range(count):
        for j in range(i + 1):
            result[i, j] = result[j, i] = hsic(grams[i], grams[j])
    return result


def ckatorch_matrix(xs: Sequence[Tensor]) -> Tensor:
    """``ckatorch.cka_batch``, its unbiased CKA of two feature tensors, per unordered pair."""
    cka = importlib.import_module("ckatorch").cka_batch
    rows = [[cka(x[None], y[None]) for y in xs[: i + 1]] for i, x in enumerate(xs)]
    count = len(xs)
    return torch.stack(
        [torch.stack([rows[max(i, j)][min(i, j)] for j in range(count)]) for i in range(count)]
    )


def ckatorch_hsic1_matrix(xs: Sequence[Tensor]) -> Tensor:
    """Ckatorch's batched ``hsic1``, a row of pairs at a time, on Gram matrices made once."""
    hsic1 = importlib.import_module("ckatorch").hsic1
    grams = stacked_grams(xs)
    return normalise(torch.stack([hsic1(gram.expand_as(grams), grams) for gram in grams]))


def ckatorch_pair(x: Tensor, y: Tensor) -> Tensor:
    """``ckatorch.cka_batch`` of one pair."""
    result: Tensor = importlib.import_module("ckatorch").cka_batch(x[None], y[None])
    return result


def ckatorch_rbf_pair(x: Tensor, y: Tensor, fraction: float) -> Tensor:
    """``ckatorch.cka_base`` of one pair: RBF, unbiased centring."""
    result: Tensor = importlib.import_module("ckatorch").cka_base(
        x, y, kernel="rbf", unbiased=True, threshold=fraction
    )
    return result


def ckatorch_loss(groups: Groups) -> Tensor:
    """The CKA-SR loss from ``ckatorch.cka_batch``; backward by autograd."""
    return torch.stack([ckatorch_matrix(group).sum() for group in groups]).sum()


def pytorch_cka_matrix(xs: Sequence[Tensor]) -> Tensor:
    """``cka.cka_from_features``, the function of pytorch-cka for feature tensors."""
    result: Tensor = importlib.import_module("cka").cka_from_features(xs, xs)
    return result


def pytorch_cka_hsic_matrix(xs: Sequence[Tensor]) -> Tensor:
    """pytorch-cka's ``hsic_cross`` on Gram matrices made once, as its one-model path does."""
    hsic_cross = importlib.import_module("cka").hsic_cross
    grams = stacked_grams(xs)
    return normalise(hsic_cross(grams, grams))


def pytorch_cka_pair(x: Tensor, y: Tensor) -> Tensor:
    """``cka.cka_from_features`` of one pair."""
    result: Tensor = importlib.import_module("cka").cka_from_features(x, y)
    return result.reshape(())


def pytorch_cka_loss(groups: Groups) -> Tensor:
    """The CKA-SR loss from pytorch-cka's ``hsic_cross``; backward by autograd."""
    hsic_cross = importlib.import_module("cka").hsic_cross
    total = []
    for group in groups:
        grams = torch.stack([x @ x.T for x in group])
        total.append(normalise(hsic_cross(grams, grams)).sum())
    return torch.stack(total).sum()
