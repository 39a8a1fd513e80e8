"""All runs of one experiment, with progress, checkpoints and the report at the end."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from . import report
from .cost import Cost, measure_cost
from .events import EventLog
from .interrupt import StopRequest
from .loop import TrainingRun
from .settings import Settings
from .store import SUMMARY, Store, holds_results

_SECONDS_BETWEEN_CHECKPOINTS = 300  # inside long epochs


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
            or the results in it are damaged.
    """
    console = Console()
    if not (resume or overwrite) and holds_results(directory):
        raise ValueError(
            f"{directory} already holds results: add --resume to go on with them, --overwrite to "
            "replace them, or choose another --out"
        )
    # What cannot be trained is told before anything is written.
    TrainingRun(settings, settings.variants[-1], settings.first_seed).close()
    store = Store(directory)
    if not resume:
        store.start(settings)
    with _threads(settings.threads), StopRequest() as stop:
        try:
            finished = _train(settings, store, console, stop)
        except OSError as error:
            raise ValueError(
                f"{directory} cannot be written to ({error.strerror or error}): the checkpoint "
                "before is intact; make room and go on with --resume"
            ) from None
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
            _report(settings, store, console)
    except KeyboardInterrupt:
        console.print(f"Stopped; all runs are in {directory}. --resume makes the report again.")
        return False
    return True


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(settings: Settings, store: Store, console: Console, stop: StopRequest) -> bool:
    checkpoint = store.load_checkpoint()
    store.rewind(checkpoint)
    complete = {
        (record["regularizer"], record["seed"])
        for record in store.records()
        if record["kind"] == "run"
    }
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    runs = list(itertools.product(seeds, settings.variants))
    with _progress(console) as progress:
        task = progress.add_task("getting ready", total=None, loss="-", accuracy="-")
        for index, (seed, variant) in enumerate(runs):
            if (variant, seed) in complete:
                continue
            run = TrainingRun(settings, variant, seed)
            if checkpoint and (checkpoint["regularizer"], checkpoint["seed"]) == (variant, seed):
                run.load_state_dict(checkpoint)
            progress.update(task, description=f"seed {seed}, {report.label(variant)}")
            _show_steps(progress, task, run, index, len(runs))
            events = EventLog(store.directory, variant, seed, run.epoch)
            saved = time.monotonic()
            try:
                while not run.finished:
                    if stop.requested:
                        store.save_checkpoint(run.state_dict())
                        return False
                    record = run.step()
                    progress.update(task, advance=1, loss=f"{run.running_loss:.3f}")
                    if record:
                        store.append(record)
                        events.write(record)
                    if record or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                        store.save_checkpoint(run.state_dict())
                        saved = time.monotonic()
                    if record:
                        _show_steps(progress, task, run, index, len(runs))
                        progress.update(task, accuracy=f"{100 * record['accuracy']:.1f} %")
                result = run.result()
            finally:
                run.close()
                events.close()
            store.append(result)
            store.drop_checkpoint()
            _announce(result, console)
    return True


def _show_steps(progress: Progress, task: TaskID, run: TrainingRun, index: int, runs: int) -> None:
    """Takes all runs for as long as this one, whose end a method may put off or bring forward."""
    steps = run.steps_per_epoch * run.epochs
    progress.update(task, total=steps * runs, completed=steps * index + run.steps_done)


def _progress(console: Console) -> Progress:
    return Progress(
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


def _announce(result: report.Record, console: Console) -> None:
    console.print(
        f"seed {result['seed']}, {report.label(result['regularizer'])}: "
        f"accuracy {100 * result['accuracy']:.2f} %, "
        f"CKA in stages {result['interlayer_cka']:.3f}, {result['seconds']:.1f} s",
        highlight=False,
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
        console.print(
            "No pictures without matplotlib: pip install 'sparsekern[plots]'", markup=False
        )
        return
    from .plots import draw_pictures

    console.print("Pictures:")
    for path in draw_pictures(store.directory, settings, records, cost):
        console.print(f"  {path}", soft_wrap=True, highlight=False)
