"""What each method adds to a training step of ResNet-20, beside plain dense training.

A method does little on most steps, and more when its masks change. So three kinds of steps are
interleaved on equal models: plain dense ones, the method's ordinary ones, and busy ones on each of
which it changes its masks or collects features. The time added per step is the median paired
difference of an ordinary step, and that of a busy one spread over the steps from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import dispatch, pruning, regularizers
from ..training.models import build_model
from .case import OURS, Contender, SpecialCase
from .results import CaseResult, Row
from .settings import Settings
from .timing import once, summarise

SUITE = "training"
_ROUNDS = {False: 21, True: 3}
_WARM_UP = {False: 3, True: 1}
_EPOCH = 391  # steps of an epoch of CIFAR at batch 128
_INTERVAL = 100  # of GMP and RigL
_SPARSITY, _BATCH, _IMAGE = 0.95, {False: 32, True: 8}, {False: 32, True: 8}
_LONG = 1_000_000  # epochs or steps that no measurement reaches
_Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Method:
    """A method as it is trained with.

    Attributes:
        name: of the case.
        title: in the case's title.
        pruner: makes it, from whether its masks change on every step and a batch; or None.
        penalty: makes a regulariser, from the model and whether it acts on every step; or None.
        interval: steps from one change of masks, or collection, to the next; 0: there is none.
        at_epochs: whether masks change in ``epoch()``.
        epochs_seen: what the pruner is told of epochs before, for a schedule in its middle.
    """

    name: str
    title: str
    pruner: Callable[[bool, _Images], pruning.Pruner | pruning.AP] | None = None
    penalty: Callable[[nn.Module, bool], Any] | None = None
    interval: int = 0
    at_epochs: bool = False
    epochs_seen: int = 0

    def case(self) -> SpecialCase:
        """The registry's entry."""
        return SpecialCase(
            id=f"method-{self.name}",
            suite=SUITE,
            title=f"{self.title} in a ResNet-20 training step, batch 32",
            reason="CIFAR's networks and images; what the method does beside forward and backward",
            shapes=self.name,
            contenders=(
                Contender(OURS, OURS, lambda quick: _step(self, quick, "auto")),
                Contender(
                    "reference",
                    "sparsekern reference",
                    lambda quick: _step(self, quick, "reference"),
                ),
            ),
            dtypes=("float32",),
            measure=lambda case, contenders, settings: _measure(self, case, contenders, settings),
        )


def _loss(model: nn.Module, batch: _Images) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _gmp(busy: bool, _batch: _Images) -> pruning.Pruner:
    # Busy: on its way from 0.9 to 0.95 for longer than is measured; else it has arrived.
    if busy:
        return pruning.GMP(_SPARSITY, end=1000, every=1, initial=0.9)
    return pruning.GMP(_SPARSITY, begin=0, end=2, every=1, initial=_SPARSITY)


def _art(_busy: bool, _batch: _Images) -> pruning.Pruner:
    # What measures accuracies is the user's; here it costs nothing.
    return pruning.ART(_SPARSITY, accuracy=lambda _model: 0.5, warmup=0)


def _hypersparse(model: nn.Module, _busy: bool) -> Any:
    return regularizers.HyperSparse(model, _SPARSITY)


METHODS = (
    Method("rst", "RST", lambda *_: pruning.RST(_SPARSITY)),
    Method("snip", "SNIP", lambda _, batch: pruning.SNIP(_SPARSITY, loss=_loss, batches=[batch])),
    Method(
        "grasp", "GraSP", lambda _, batch: pruning.GraSP(_SPARSITY, loss=_loss, batches=[batch])
    ),
    Method("gmp", "GMP", _gmp, interval=_INTERVAL),
    Method(
        "lth",
        "LTH",
        lambda *_: pruning.LTH(_SPARSITY, epochs=1, rounds=1000),
        interval=160 * _EPOCH,
        at_epochs=True,
    ),
    Method("set", "SET", lambda *_: pruning.SET(_SPARSITY), interval=_EPOCH, at_epochs=True),
    Method(
        "rigl",
        "RigL",
        lambda busy, _: pruning.RigL(_SPARSITY, end=_LONG, every=1 if busy else _LONG),
        interval=_INTERVAL,
    ),
    Method("art", "ART's regularised phase", _art, interval=_EPOCH, at_epochs=True),
    Method(
        "optg",
        "OptG",
        lambda *_: pruning.OptG(_SPARSITY, epochs=_LONG),
        interval=_EPOCH,
        at_epochs=True,
        epochs_seen=_LONG // 2 + 10,
    ),
    Method(
        "ap",
        "AP along with GMP",
        lambda busy, batch: pruning.AP(_gmp(busy, batch)),
        interval=_INTERVAL,
    ),
    Method(
        "ckasr",
        "CKA-SR",
        penalty=lambda model, busy: regularizers.CKASparsity(
            model, beta=1e-4, samples=8, every=1 if busy else _LONG
        ),
        interval=5,
    ),
    Method("hypersparse", "HyperSparse", penalty=_hypersparse),
    Method(
        "layersparsity",
        "layer sparsity's proximal step",
        penalty=lambda model, _: regularizers.LayerSparsity(model, 0.1),
    ),
)


class _Step:
    """Training steps of one model: plain ones, or with a method in one of its two kinds."""

    def __init__(self, method: Method | None, quick: bool, backend: str, busy: bool) -> None:
        self._model = build_model(
            "resnet20", width=16, channels=3, classes=10, seed=0, size=_IMAGE[quick]
        )
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4
        )
        generator = torch.Generator().manual_seed(0)
        size = (_BATCH[quick], 3, _IMAGE[quick], _IMAGE[quick])
        images = torch.randn(size, generator=generator)
        self._batch = (images, torch.randint(0, 10, size[:1], generator=generator))
        self._backend, self._pruner, self._penalty = backend, None, None
        self._busy = busy and method is not None and method.at_epochs
        if method is None:
            return
        with self._on():
            if method.penalty is not None:
                self._penalty = method.penalty(self._model, busy)
            if method.pruner is not None:
                self._pruner = method.pruner(busy, self._batch)
                self._pruner.attach(self._model, self._optimizer)
                base = self._pruner.base if isinstance(self._pruner, pruning.AP) else self._pruner
                base.epochs = method.epochs_seen
                if method.epochs_seen:  # sparse, as in the middle of its schedule
                    self()
                    self._pruner.epoch()

    def _on(self) -> Any:
        return nullcontext() if self._backend == "auto" else dispatch.backend(self._backend)

    def __call__(self) -> None:
        with self._on():
            self._optimizer.zero_grad(set_to_none=True)
            loss = _loss(self._model, self._batch)
            if isinstance(self._pruner, pruning.ART):
                loss = loss + self._pruner.penalty()
            proximal = isinstance(self._penalty, regularizers.LayerSparsity)
            if self._penalty is not None and not proximal:
                loss = loss + self._penalty()
            torch.autograd.backward(loss)
            self._optimizer.step()
            if proximal and self._penalty is not None:
                self._penalty.prox_(1e-3)
            if self._pruner is not None:
                self._pruner.step()
                if self._busy:
                    self._pruner.epoch()


def _step(method: Method, quick: bool, backend: str) -> tuple[_Step, _Step | None]:
    ordinary = _Step(method, quick, backend, busy=False)
    return ordinary, _Step(method, quick, backend, busy=True) if method.interval else None


def _measure(
    method: Method, case: SpecialCase, contenders: Sequence[Contender], settings: Settings
) -> CaseResult:
    """Times interleaved steps and turns them into the time added per step and its share."""
    quick = settings.quick
    plain = _Step(None, quick, "auto", busy=False)
    made = [contender.work(quick) for contender in contenders]
    steps = [plain, *(step for pair in made for step in pair if step is not None)]
    for step in steps:
        for _ in range(_WARM_UP[quick]):
            step()
    samples: dict[int, list[float]] = {id(step): [] for step in steps}
    for turn in range(_ROUNDS[quick]):
        for step in steps if turn % 2 == 0 else reversed(steps):
            samples[id(step)].append(once(step))
    base = samples[id(plain)]
    rows, details = [], []
    for contender, (ordinary, busy) in zip(contenders, made, strict=True):
        more = [t - p for t, p in zip(samples[id(ordinary)], base, strict=True)]
        parts = {"ordinary": summarise(more).median}
        text = f"{1e3 * summarise(more).median:+.2f} ms on an ordinary step"
        if busy is not None:
            often = [t - p for t, p in zip(samples[id(busy)], base, strict=True)]
            text += f", {1e3 * summarise(often).median:+.2f} ms on one of {method.interval}"
            parts |= {"busy": summarise(often).median, "interval": method.interval}
            more = [m + (o - m) / method.interval for m, o in zip(more, often, strict=True)]
        row = Row(contender.name, contender.label, group=contender.group)
        row.set_timing(summarise(more))
        row.parts = parts
        row.step_share = summarise(more).median / summarise(base).median
        rows.append(row)
        details.append(f"{contender.label} {text}")
    return CaseResult.of(
        case,
        rows,
        details=f"time added per step; the step itself takes "
        f"{1e3 * summarise(base).median:.1f} ms; " + "; ".join(details),
    )


def cases() -> list[SpecialCase]:
    """A case for each method."""
    return [method.case() for method in METHODS]
