"""Small models and data that the tests of the comparison share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.ops.similarity import reference
from sparsekern.ops.similarity.kernels import Linear


class Given(nn.Module):
    """Gives out, layer by layer, the features that come with the batch."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.taps = nn.ModuleList(nn.Identity() for _ in range(count))

    def forward(self, *features: Tensor) -> None:
        for tap, feature in zip(self.taps, features, strict=True):
            tap(feature)


class ConvNet(nn.Module):
    """Convolution, batch norm and an in-place ReLU, twice, and a classifier."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU(inplace)
        self.fc = nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(1))


def minibatch_oracle(batches: Sequence[Sequence[Tensor]]) -> Tensor:
    """HSIC_1 of every pair from the float64 reference, summed over batches, divided once."""
    total = sum(
        reference.hsic_matrix([x.double().flatten(1) for x in xs], None, Linear(), "unbiased")
        for xs in batches
    )
    norms = total.diagonal().sqrt()
    return total / norms[:, None] / norms


def given_loader(batches: Iterable[Sequence[Tensor]]) -> list[dict[str, Any]]:
    return [{"features": list(xs)} for xs in batches]


def compare_given(batches: Sequence[Sequence[Tensor]], **options: Any) -> sk.analysis.CKAResult:
    """Compares layers whose features are given, batch by batch."""
    model = Given(len(batches[0])).eval()
    comparison = sk.analysis.CKA(model, inputs=lambda b: tuple(b["features"]), **options)
    return comparison.compare(given_loader(batches), progress=False)


def correlated(n: int, dims: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Features of several layers with a common part."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 4, generator=generator)
    return [
        latent @ torch.randn(4, d, generator=generator) + torch.randn(n, d, generator=generator)
        for d in dims
    ]


@pytest.fixture
def tools() -> SimpleNamespace:
    return SimpleNamespace(
        Given=Given,
        ConvNet=ConvNet,
        minibatch_oracle=minibatch_oracle,
        given_loader=given_loader,
        compare_given=compare_given,
        correlated=correlated,
    )


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 1, 8, 8)


@pytest.fixture
def net() -> nn.Module:
    return ConvNet().eval()
