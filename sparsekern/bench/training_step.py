"""R1: what CKA-SR at its defaults adds to a training step of ResNet-20.

A small share of a noisy step cannot be told by timing whole epochs. So steps without a regulariser
and steps on which it collects are interleaved on equal models, and the median of the differences
within a round, over ``every``, is the time added per step; steps on which it does not collect only
run its hooks, which a third model with the defaults is there to show in the caption.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import dispatch
from ..regularizers import CKASparsity
from ..training.models import build_model, similarity_groups
from . import baselines
from .cases import TrainingCase
from .contenders import LABELS, OURS
from .results import CaseResult, Row
from .timing import once, summarise

_ROUNDS = {False: 60, True: 4}
_WARM_UP = {False: 5, True: 2}
_BETA = 1e-4


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
    """A training step of its own model, with one of the regularisers or none."""

    def __init__(self, case: TrainingCase, kind: str, every: int) -> None:
        self.model = build_model("resnet20", width=16, channels=3, classes=10, seed=0)
        self.penalty: Callable[[], Tensor] | None = None
        if kind == OURS:
            self.penalty = CKASparsity(self.model, beta=_BETA, samples=case.samples, every=every)
        elif kind != "none":
            losses: dict[str, Callable[[baselines.Groups], Tensor]] = {
                "eager": baselines.eager_backward_loss,
                "authors": baselines.authors_loss,
            }
            stages = similarity_groups("resnet20")
            self.penalty = _PlainPenalty(self.model, stages, case.samples, losses[kind])
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(case.batch, 3, case.image, case.image, generator=generator)
        self.labels = torch.randint(0, 10, (case.batch,), generator=generator)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        if self.penalty is not None:
            loss = loss + self.penalty()
        torch.autograd.backward(loss)
        self.optimizer.step()


def measure(case: TrainingCase, names: list[str], backend: str, quick: bool) -> CaseResult:
    """Times interleaved steps and turns them into the time added per step and its share."""
    kinds = [OURS, *names]
    with dispatch.backend(backend):
        plain, idle = _Step(case, "none", 1), _Step(case, OURS, 1_000_000)
        steps = [plain, idle, *(_Step(case, kind, 1) for kind in kinds)]
        for step in steps:
            for _ in range(_WARM_UP[quick]):
                step()
        samples: list[list[float]] = [[] for _ in steps]
        for turn in range(_ROUNDS[quick]):
            order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
            for index in order:
                samples[index].append(once(steps[index]))
    base = summarise(samples[0])
    rows = []
    for kind, times in zip(kinds, samples[2:], strict=True):
        differences = [(t - p) / case.every for t, p in zip(times, samples[0], strict=True)]
        added = summarise(differences)
        rows.append(
            Row(
                kind,
                LABELS[kind],
                seconds=added.median,
                low=added.low,
                high=added.high,
                samples=added.samples,
                step_share=added.median / base.median,
            )
        )
    idle_share = summarise([t - p for t, p in zip(samples[1], samples[0], strict=True)]).median
    details = (
        f"time added per step, {case.samples} samples every {case.every}th step; the step itself "
        f"takes {1e3 * base.median:.1f} ms (quartiles {1e3 * base.low:.1f} to "
        f"{1e3 * base.high:.1f}); a step on which nothing is collected differs by "
        f"{100 * idle_share / base.median:+.2f}%"
    )
    return CaseResult(case.id, case.suite, case.title, case.reason, rows, details=details)
