"""The pruning methods with the schedules that a training of a given length calls for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import pruning
from .data import BatchLoader
from .measure import accuracy_and_loss
from .settings import AP, Settings

# Of the training's steps: the rest is for the network in its final sparsity (Evci et al. 2020).
_PRUNING_SHARE = 0.75
_GRASP_TEMPERATURE = 200  # of Wang et al. 2020's code: their logits are divided by it
_FINETUNING = "fine-tuning"  # ART's last phase
_Options = dict[str, Any]
AnyPruner = pruning.Pruner | pruning.AP


def make_pruner(
    settings: Settings, seed: int, loader: BatchLoader, *, ap: bool = False
) -> AnyPruner | None:
    """The method, to be attached; None for dense training.

    Args:
        settings: what is trained; ``settings.options`` come before the defaults made here.
        seed: of random masks.
        loader: training batches, for methods that look at some of them.
        ap: whether AP prunes along with it.

    Raises:
        ValueError: if the method does not take one of its options.
    """
    if settings.method == "dense":
        return None
    steps = settings.epochs * len(loader)
    given = settings.options.get(settings.method, {})
    kind, options = _METHODS[settings.method](settings, seed, steps, loader, given)
    pruner: pruning.Pruner = called(settings.method, kind, settings.sparsity, **options)
    if not ap:
        return pruner
    # For methods that prune once: five cycles in the first five eighths of the epochs.
    cycles = {"epochs": max(1, settings.epochs // 8), "cycles": min(5, settings.epochs)}
    with_ap: pruning.AP = called(
        AP, pruning.AP, pruner, **{**cycles, **settings.options.get(AP, {})}
    )
    return with_ap


def base_of(pruner: AnyPruner | None) -> pruning.Pruner | None:
    """The method without AP."""
    return pruner.base if isinstance(pruner, pruning.AP) else pruner


def total_epochs(settings: Settings, pruner: AnyPruner | None) -> int:
    """How many epochs there are in all: of every round, and of ART's phases, as far as known."""
    base = base_of(pruner)
    if isinstance(base, pruning.LTH):
        return settings.epochs * (base.rounds + 1)
    if isinstance(base, pruning.ART):
        if base.phase == _FINETUNING:
            return base.epochs - base.finetuned + settings.epochs
        expected = base.warmup + min(base.max_epochs or settings.epochs, settings.epochs)
        return max(expected, base.epochs + 1) + settings.epochs
    return settings.epochs


def schedule_epoch(settings: Settings, pruner: AnyPruner | None, epoch: int) -> int:
    """The epoch that the learning rate's schedule is at: it begins anew where the method does."""
    base = base_of(pruner)
    if isinstance(base, pruning.LTH):
        return epoch % settings.epochs
    if isinstance(base, pruning.ART):
        # The schedule is that of fine-tuning; before, only its warm-up counts.
        return base.finetuned if base.phase == _FINETUNING else min(epoch, settings.warmup)
    return epoch


def called(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls a constructor; what it says of its arguments is told as an option's fault."""
    try:
        return function(*arguments, **options)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix(f"{function.__name__}.__init__() ")
        raise ValueError(f"--set {name}...: {text}") from None


def _rst(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    return pruning.RST, {"seed": seed, **given}


def _gmp(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    if "once" in given:
        return pruning.GMP, _pruned_once(settings, steps, given)
    end = max(2, int(_PRUNING_SHARE * steps))
    return pruning.GMP, {"end": end, "every": _interval(end), **given}


def _lth(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    return pruning.LTH, {"epochs": settings.epochs, **given}


def _set(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    return pruning.SET, {"epochs": settings.epochs, "seed": seed, **given}


def _rigl(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    end = max(2, int(_PRUNING_SHARE * steps))
    return pruning.RigL, {"end": end, "every": _interval(end), "seed": seed, **given}


def _snip(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    return pruning.SNIP, _looking_at_batches(settings, seed, loader, {"temperature": 1, **given})


def _grasp(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    options = {"temperature": _GRASP_TEMPERATURE, **given}
    return pruning.GraSP, _looking_at_batches(settings, seed, loader, options)


def _art(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    def accuracy(model: nn.Module) -> float:
        training = model.training
        try:
            return accuracy_and_loss(model, loader.images)[0]
        finally:
            model.train(training)

    # The paper's shares: 60 epochs of warm-up to 160 of fine-tuning.
    phases = {"warmup": settings.epochs * 3 // 8, "max_epochs": settings.epochs}
    return pruning.ART, {"accuracy": accuracy, **phases, **given}


def _optg(settings: Settings, seed: int, steps: int, loader: BatchLoader, given: _Options) -> Any:
    return pruning.OptG, {"epochs": settings.epochs, **given}


_METHODS: dict[str, Callable[[Settings, int, int, BatchLoader, _Options], Any]] = {
    "rst": _rst,
    "gmp": _gmp,
    "lth": _lth,
    "set": _set,
    "rigl": _rigl,
    "snip": _snip,
    "grasp": _grasp,
    "art": _art,
    "optg": _optg,
}


def _pruned_once(settings: Settings, steps: int, given: _Options) -> _Options:
    """Turns ``once``, a share of the steps, into a schedule of one pruning to the full sparsity."""
    once = given["once"]
    if isinstance(once, bool) or not isinstance(once, int | float) or not 0 <= once <= 1:
        raise ValueError(f"--set gmp.once must be a share of the steps, from 0 to 1, got {once}")
    of_schedule = sorted({"begin", "end", "every", "initial"} & given.keys())
    if of_schedule:
        raise ValueError(f"--set gmp.once leaves no schedule: leave out gmp.{of_schedule[0]}")
    begin = round(once * steps)
    rest = {name: value for name, value in given.items() if name != "once"}
    return {"begin": begin, "end": begin + 1, "every": 1, "initial": settings.sparsity, **rest}


def _interval(end: int) -> int:
    """Steps from one change of masks to the next: 100, fewer where that would be few changes."""
    return min(100, max(1, end // 20))


def _looking_at_batches(
    settings: Settings, seed: int, loader: BatchLoader, options: _Options
) -> _Options:
    """Turns ``batches`` (how many) and ``temperature`` into what methods before training take."""
    count, temperature = options.pop("batches", 1), options.pop("temperature")
    if not isinstance(count, int) or not 1 <= count <= len(loader):
        raise ValueError(
            f"--set {settings.method}.batches must be from 1 to the {len(loader)} of an epoch, "
            f"got {count}"
        )
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise ValueError(
            f"--set {settings.method}.temperature must be a positive number, got {temperature}"
        )

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        with torch.random.fork_rng(devices=[]):  # dropout, where there is any
            torch.manual_seed(seed)
            return functional.cross_entropy(model(images) / temperature, labels)

    return {"loss": loss, "batches": [loader.get(0, index) for index in range(count)], **options}
