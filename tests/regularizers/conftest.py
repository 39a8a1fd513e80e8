"""A small residual network, and the definition of CKA-SR in float64 as the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsekern.ops.similarity import reference
from sparsekern.ops.similarity.kernels import Linear


class Residual(nn.Module):
    def __init__(self, width: int, next_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, next_width, 3, padding=1)
        self.short = nn.Conv2d(width, next_width, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(x) + self.short(x))


class SmallNet(nn.Module):
    """Two stages of two residual blocks; images are ``(n, 3, 6, 6)``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Residual(3, 4), Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(4, 6), Residual(6, 6))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean(dim=(2, 3)))


def definition(groups, estimator="unbiased", pairs="stage"):
    """CKA-SR (ordered pairs, ``i = j`` included) or AugCKA (mean over ``i < j``), pair by pair."""

    def cka(x, y):
        return reference.cka_matrix([x.flatten(1)], [y.flatten(1)], Linear(), estimator).squeeze()

    if pairs == "stage":
        return sum(cka(x, y) for group in groups for x in group for y in group)
    flat = [x for group in groups for x in group]
    count = len(flat)
    total = sum(cka(flat[i], flat[j]) for i in range(count) for j in range(i + 1, count))
    return total / (count * (count - 1) / 2)


def oracle(model, images, samples=8, **options):
    """The definition on a float64 copy of a SmallNet: its value, gradients, and the logits."""
    exact = copy.deepcopy(model).double().train()
    exact.zero_grad()
    x, groups = images.double(), []
    for stage in (exact.layer1, exact.layer2):
        groups.append([])
        for block in stage:
            x = block(x)
            groups[-1].append(x if samples == -1 else x[:samples])
    value = definition(groups, **options)
    value.backward()
    return value.detach(), [p.grad for p in exact.parameters()]


def relative_error(actual, expected):
    """``‖a − e‖ / ‖e‖`` over a list of gradients, None standing for zero."""
    pairs = [(a, e) for a, e in zip(actual, expected, strict=True) if e is not None]
    difference = sum((a.double() - e).square().sum() for a, e in pairs)
    return (difference / sum(e.square().sum() for _, e in pairs)).sqrt().item()


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.fixture
def tools():
    """What the test modules share."""

    class Tools:
        pass

    Tools.definition = staticmethod(definition)
    Tools.oracle = staticmethod(oracle)
    Tools.gradients = staticmethod(gradients)
    Tools.relative_error = staticmethod(relative_error)
    Tools.Residual = Residual
    Tools.SmallNet = SmallNet
    return Tools


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallNet()


@pytest.fixture
def images():
    return torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))
