"""R1: what CKA-SR at its defaults adds to a training step of ResNet-20.

A small share of a noisy step cannot be told by timing whole epochs. So steps without a regulariser
and steps on which it collects are interleaved on equal models, and the median of the differences
within a round, over ``every``, is the time added per step; steps on which it does not collect only
run its hooks, which a third model with the defaults is there to show in the caption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..regularizers import CKASparsity
from ..training.models import build_model, similarity_groups
from . import baselines
from .case import OURS, Contender, SpecialCase
from .results import CaseResult, Row
from .settings import Settings
from .timing import once, summarise

_ROUNDS = {False: 60, True: 4}
_LEAST = 10  # rounds, where --budget is spent
_WARM_UP = {False: 5, True: 2}
_BETA = 1e-4
_SAMPLES, _EVERY, _IMAGE = 8, 5, 32
_Penalty = Callable[[], Tensor]


def case(batch: int) -> SpecialCase:
    """The case of this batch size; the work of a contender is to put a penalty on a model."""
    return SpecialCase(
        id="R1",
        suite="regularizers",
        title=f"CKA-SR at its defaults in a ResNet-20 training step, batch {batch}",
        reason="the recipe of the CIFAR examples: 32 x 32 images, 8 samples, every 5th step",
        shapes=f"batch={batch}",
        contenders=(
            Contender(OURS, OURS, _ours(every=1)),
            Contender("eager", "eager", _plain(baselines.eager_backward_loss)),
            Contender("authors", "authors' formulation", _plain(baselines.authors_loss)),
        ),
        dtypes=("float32",),
        summary=True,
        measure=lambda case, contenders, settings: _measure(case, contenders, settings, batch),
    )


def _ours(every: int) -> Callable[[nn.Module], _Penalty]:
    return lambda model: CKASparsity(model, beta=_BETA, samples=_SAMPLES, every=every)


def _plain(loss: Callable[[baselines.Groups], Tensor]) -> Callable[[nn.Module], _Penalty]:
    return lambda model: _PlainPenalty(model, similarity_groups("resnet20"), _SAMPLES, loss)


class _PlainPenalty:
    """A regulariser of a user's own making: hooks on the same blocks, a given loss function."""

    def __init__(
        self,
        model: nn.Module,
        stages: list[list[str]],
        samples: int,
        loss: Callable[[baselines.Groups], Tensor],
    ) -> None:
        self._stages, self._samples, self._loss = stages, samples, loss
        self._features: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        for name in (name for stage in stages for name in stage):
            modules[name].register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._features[name] = output[: self._samples].flatten(1)

        return hook

    def __call__(self) -> Tensor:
        groups = [[self._features[name] for name in stage] for stage in self._stages]
        return _BETA * self._loss(groups)


class _Step:
    """A training step of its own model, with a penalty or none."""

    def __init__(self, batch: int, attach: Callable[[nn.Module], _Penalty] | None) -> None:
        self.model = build_model("resnet20", width=16, channels=3, classes=10, seed=0)
        self.penalty = None if attach is None else attach(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, 3, _IMAGE, _IMAGE, generator=generator)
        self.labels = torch.randint(0, 10, (batch,), generator=generator)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        if self.penalty is not None:
            loss = loss + self.penalty()
        torch.autograd.backward(loss)
        self.optimizer.step()


def _measure(
    case: SpecialCase, contenders: Sequence[Contender], settings: Settings, batch: int
) -> CaseResult:
    """Times interleaved steps and turns them into the time added per step and its share."""
    quick = settings.quick
    plain, idle = _Step(batch, None), _Step(batch, _ours(every=1_000_000))
    steps = [plain, idle, *(_Step(batch, contender.work) for contender in contenders)]
    for step in steps:
        for _ in range(_WARM_UP[quick]):
            step()
    samples: list[list[float]] = [[] for _ in steps]
    start = time.perf_counter()
    for turn in range(_ROUNDS[quick]):
        is_over = settings.budget is not None and time.perf_counter() - start > settings.budget
        if is_over and turn >= _LEAST and turn % 2 == 0:
            break
        order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
        for index in order:
            samples[index].append(once(steps[index]))
    base = summarise(samples[0])
    rows = []
    for contender, times in zip(contenders, samples[2:], strict=True):
        differences = [(t - p) / _EVERY for t, p in zip(times, samples[0], strict=True)]
        added = summarise(differences)
        row = Row(contender.name, contender.label, group=contender.group)
        row.set_timing(added)
        row.step_share = added.median / base.median
        rows.append(row)
    idle_share = summarise([t - p for t, p in zip(samples[1], samples[0], strict=True)]).median
    details = (
        f"time added per step, {_SAMPLES} samples every {_EVERY}th step; the step itself "
        f"takes {1e3 * base.median:.1f} ms (quartiles {1e3 * base.low:.1f} to "
        f"{1e3 * base.high:.1f}); a step on which nothing is collected differs by "
        f"{100 * idle_share / base.median:+.2f}%"
    )
    return CaseResult.of(case, rows, details=details)
