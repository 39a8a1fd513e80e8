"""What the CKA regulariser costs per step, in three ways of computing the same loss."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .. import dispatch
from ..ops.similarity import cka_sum
from . import models
from .building import make_data, make_model
from .measure import block_features
from .settings import ALL_SAMPLES, Settings

ROUNDS = 31
Groups = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Cost:
    """Median milliseconds, all measured in turns in one process.

    Attributes:
        fused: :func:`sparsekern.cka_sum` and its gradient, on the back end named in ``backend``.
        plain: the same operator on the plain-PyTorch reference.
        pairwise: the authors' formulation, :func:`pairwise_loss`.
        step: a training step without any regulariser, for scale.
        backend: what ``auto`` chose.
        samples: images the regulariser looks at.
        every: it acts on every ``every``-th step; the times are those of a step it acts on.
    """

    fused: float
    plain: float
    pairwise: float
    step: float
    backend: str
    samples: int
    every: int


def pairwise_loss(groups: Groups, estimator: str, reduction: str) -> Tensor:
    """The loss as Ni et al. 2023 write it: a loop over pairs, each pair with its own Grams.

    Args:
        groups: features ``(n, d)`` by group.
        estimator: ``"unbiased"`` (Song et al. 2012, with traces of products) or ``"biased"``.
        reduction: ``"sum"`` over ordered pairs inside groups, or ``"mean"`` over all i < j.
    """
    if reduction == "mean":
        layers = [x for group in groups for x in group]
        pairs = [(x, y) for i, x in enumerate(layers) for y in layers[i + 1 :]]
        return torch.stack([_pair_cka(x, y, estimator) for x, y in pairs]).mean()
    pairs = [(x, y) for group in groups for x in group for y in group]
    return torch.stack([_pair_cka(x, y, estimator) for x, y in pairs]).sum()


def _pair_cka(x: Tensor, y: Tensor, estimator: str) -> Tensor:
    hsic = _unbiased_hsic if estimator == "unbiased" else _biased_hsic
    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


def _biased_hsic(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - 1 / n
    return torch.trace(k @ h @ m @ h) / (n - 1) ** 2


def _unbiased_hsic(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    ones = k.new_ones(n, 1)
    trace = torch.trace(k @ m)
    means = (ones.T @ k @ ones) * (ones.T @ m @ ones) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (ones.T @ k @ m @ ones)
    return (trace + means - cross).squeeze() / (n * (n - 3))


def measure_cost(settings: Settings, rounds: int = ROUNDS) -> Cost:
    """Times value and gradient of the regulariser on the features of a fresh network.

    The forms take turns, so that other load on the machine falls on all of them alike.
    """
    augmented = settings.cka_regularizer == "augckasr"
    estimator, reduction = ("biased", "mean") if augmented else ("unbiased", "sum")
    samples = settings.batch_size if settings.samples == ALL_SAMPLES else settings.samples
    dataset = make_data(settings, seed=0)
    count = min(settings.batch_size, len(dataset.train.labels))
    images, labels = dataset.train.batch(torch.arange(count)), dataset.train.labels[:count]
    model = make_model(settings, dataset, seed=0)
    names = models.similarity_groups(settings.model)
    groups = [
        [x[:samples].detach().requires_grad_() for x in block_features(model, group, images)]
        for group in names
    ]
    leaves = [x for group in groups for x in group]

    def differentiate(loss: Tensor) -> None:
        torch.autograd.grad(loss, leaves, allow_unused=True)

    def fused() -> None:
        differentiate(cka_sum(groups, estimator=estimator, reduction=reduction))

    def plain() -> None:
        with dispatch.backend("reference"):
            fused()

    def pairwise() -> None:
        differentiate(pairwise_loss(groups, estimator, reduction))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(images), labels))
        optimizer.step()

    fused_ms, plain_ms, pairwise_ms, step_ms = _interleaved([fused, plain, pairwise, step], rounds)
    return Cost(
        fused=fused_ms,
        plain=plain_ms,
        pairwise=pairwise_ms,
        step=step_ms,
        backend=dispatch.select(images.device),
        samples=min(samples, len(labels)),
        every=settings.every,
    )


def _interleaved(functions: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 2):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found[2:]) for found in times]  # the first two are warm-up
