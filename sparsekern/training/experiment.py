"""All runs of one experiment, with progress, checkpoints and the report at the end."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..interrupt import StopRequest
from . import report
from .cost import Cost, measure_cost
from .events import EventLog
from .loop import TrainingRun
from .settings import Settings
from .store import SUMMARY, Store, holds_results

_SECONDS_BETWEEN_CHECKPOINTS = 300  # inside long epochs


class Watcher(Protocol):
    """Is told how an experiment goes."""

    def begin(self, run: TrainingRun, index: int, runs: int) -> None:
        """A run begins or goes on, the ``index``-th of all."""

    def step(self, run: TrainingRun) -> None:
        """It made a step."""

    def epoch(self, run: TrainingRun, record: report.Record) -> None:
        """It ended an epoch."""

    def end(self, result: report.Record) -> None:
        """It ended."""


def run_experiment(settings: Settings, directory: Path, *, resume: bool, overwrite: bool) -> bool:
    """Trains every seed in every variant, then writes the summary and draws the pictures.

    Args:
        settings: what to train.
        directory: where the results go.
        resume: go on with what the directory holds.
        overwrite: replace what the directory holds.

    Returns:
        Whether it came to its end; False after Ctrl-C, with a checkpoint to resume from.

    Raises:
        ValueError: if the directory holds results and neither ``resume`` nor ``overwrite`` is set,
            the results in it are damaged, it cannot be written to, or training diverges.
    """
    console = Console(markup=False)  # paths and messages may hold brackets
    if not (resume or overwrite) and holds_results(directory):
        raise ValueError(
            f"{directory} already holds results: add --resume to go on with them, --overwrite to "
            "replace them, or choose another --out"
        )
    with StopRequest() as stop, _Bar(console) as bar:
        finished = train_all(
            settings, directory, resume=resume, stop=stop, watcher=bar, keep_weights=True
        )
    if not finished:
        console.print(
            f"Stopped; a checkpoint is in {directory}. Go on with:\n"
            f"  sparsekern train --resume --out {directory}",
            soft_wrap=True,
            highlight=False,
        )
        return False
    try:
        with _threads(settings.threads):
            _report(settings, Store(directory), console)
    except KeyboardInterrupt:
        console.print(f"Stopped; all runs are in {directory}. --resume makes the report again.")
        return False
    return True


def train_all(
    settings: Settings,
    directory: Path,
    *,
    resume: bool,
    stop: StopRequest,
    watcher: Watcher,
    keep_weights: bool = False,
) -> bool:
    """Trains every seed in every variant, and writes the results.

    Args:
        settings: what to train.
        directory: where the results go; what it holds is replaced, or gone on with.
        resume: which of the two.
        stop: asked before every step.
        watcher: told of every step.
        keep_weights: whether the trained networks are kept beside the results.

    Returns:
        Whether it came to its end; else there is a checkpoint.

    Raises:
        ValueError: see :func:`run_experiment`.
    """
    with _threads(settings.threads):
        # What cannot be trained is told before anything is written.
        TrainingRun(settings, settings.variants[-1], settings.first_seed).close()
        try:
            store = Store(directory)
            if not resume:
                store.start(settings)
            return _train(settings, store, stop, watcher, keep_weights)
        except OSError as error:
            raise ValueError(
                f"{directory} cannot be written to ({error.strerror or error}): the checkpoint "
                "before is intact; make room and go on with --resume"
            ) from None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    settings: Settings, store: Store, stop: StopRequest, watcher: Watcher, keep_weights: bool
) -> bool:
    checkpoint = store.load_checkpoint()
    store.rewind(checkpoint)
    complete = {
        (record["regularizer"], record["seed"])
        for record in store.records()
        if record["kind"] == "run"
    }
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    runs = list(itertools.product(seeds, settings.variants))
    for index, (seed, variant) in enumerate(runs):
        if (variant, seed) in complete:
            continue
        run = TrainingRun(settings, variant, seed)
        if checkpoint and (checkpoint["regularizer"], checkpoint["seed"]) == (variant, seed):
            run.load_state_dict(checkpoint)
        watcher.begin(run, index, len(runs))
        events = EventLog(store.directory, variant, seed, run.epoch)
        try:
            if not _train_one(run, store, stop, watcher, events):
                return False
            result = run.result()
            if keep_weights:  # before the result is written: a run with a result is complete
                store.save_weights(run.weights())
        finally:
            run.close()
            events.close()
        store.append(result)
        store.drop_checkpoint()
        watcher.end(result)
    return True


def _train_one(
    run: TrainingRun, store: Store, stop: StopRequest, watcher: Watcher, events: EventLog
) -> bool:
    saved = time.monotonic()
    while not run.finished:
        if stop.requested:
            store.save_checkpoint(run.state_dict())
            return False
        record = run.step()
        if record:
            store.append(record)
            events.write(record)
        if record or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            store.save_checkpoint(run.state_dict())
            saved = time.monotonic()
        watcher.step(run)
        if record:
            watcher.epoch(run, record)
    return True


class _Bar:
    """A progress bar over the steps of all runs, with the time left; a line for each run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("accuracy {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("getting ready", total=None, loss="-", accuracy="-")
        self._place = (0, 1)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, run: TrainingRun, index: int, runs: int) -> None:
        """See :class:`Watcher`."""
        self._place = (index, runs)
        self._progress.update(
            self._task, description=f"seed {run.seed}, {report.label(run.variant)}"
        )
        self._show_steps(run)

    def step(self, run: TrainingRun) -> None:
        """See :class:`Watcher`."""
        self._progress.update(self._task, advance=1, loss=f"{run.running_loss:.3f}")

    def epoch(self, run: TrainingRun, record: report.Record) -> None:
        """See :class:`Watcher`."""
        self._progress.update(self._task, accuracy=f"{100 * record['accuracy']:.1f} %")
        self._show_steps(run)

    def end(self, result: report.Record) -> None:
        """See :class:`Watcher`."""
        self._console.print(
            f"seed {result['seed']}, {report.label(result['regularizer'])}: "
            f"accuracy {100 * result['accuracy']:.2f} %, "
            f"CKA in stages {result['interlayer_cka']:.3f}, {result['seconds']:.1f} s",
            highlight=False,
        )
        if result.get("merged", {}).get("count"):
            merged = result["merged"]
            self._console.print(
                f"  without {', '.join(merged['layers'])}, merged into the next: "
                f"{merged['parameters']} parameters instead of {merged['parameters_before']}, "
                f"accuracy {100 * merged['accuracy']:.2f} %",
                highlight=False,
                soft_wrap=True,
            )

    def _show_steps(self, run: TrainingRun) -> None:
        """Takes all runs for as long as this one, whose end a method may move."""
        index, runs = self._place
        steps = run.steps_per_epoch * run.epochs
        self._progress.update(
            self._task, total=steps * runs, completed=steps * index + run.steps_done
        )


def _report(settings: Settings, store: Store, console: Console) -> None:
    records = store.records()
    cost = measure_cost(settings) if settings.cka_regularizer else None
    summary = report.summarise(settings, records, cost)
    store.write_json(SUMMARY, summary)
    console.print(report.results_table(summary))
    if cost:
        console.print(report.cost_line(cost), highlight=False)
    _draw(settings, store, records, cost, console)


def _draw(
    settings: Settings,
    store: Store,
    records: list[report.Record],
    cost: Cost | None,
    console: Console,
) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        console.print("No pictures without matplotlib: pip install 'sparsekern[plots]'")
        return
    from .plots import draw_pictures

    console.print("Pictures:")
    for path in draw_pictures(store.directory, settings, records, cost):
        console.print(f"  {path}", soft_wrap=True, highlight=False)
