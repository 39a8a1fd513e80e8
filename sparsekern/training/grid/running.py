"""Trains the cells of the grid in several processes, with one progress bar for all."""

from __future__ import annotations

import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ...interrupt import StopRequest
from ..reporting.command import write_report
from ..settings import Settings
from .cells import DONE
from .command import INTERRUPTED

_Work = Sequence[tuple[str, Settings]]


def run_cells(work: _Work, states: Sequence[str], out: Path, jobs: int) -> int:
    """Trains all cells that are not done, and writes the report of what there is.

    Args:
        work: the cells' names and their settings.
        states: of each, as :func:`~sparsekern.training.grid.cells.state_of` has it.
        out: where the cells' folders are.
        jobs: processes.

    Returns:
        The exit status of ``sparsekern grid``.
    """
    console = Console(markup=False)  # paths and messages may hold brackets
    status, trained = train_cells(work, states, out, jobs, console)
    if trained:
        _, paths = write_report([out], out)
        console.print("Written:")
        for path in paths:
            console.print(f"  {path}", soft_wrap=True, highlight=False)
    return status


def train_cells(
    work: _Work, states: Sequence[str], out: Path, jobs: int, console: Console
) -> tuple[int, bool]:
    """Trains all cells that are not done; see :func:`run_cells`.

    Returns:
        An exit status: 0; 1 if a cell failed, which is told; ``INTERRUPTED``, which is told too.
        And whether it came to its end with any cell trained.
    """
    left = [entry for entry, state in zip(work, states, strict=True) if state != DONE]
    skipped = len(work) - len(left)
    if skipped:
        console.print(f"{skipped} of {len(work)} cells are done already.", highlight=False)
    team = _Team(out, console, skipped, len(work))
    with StopRequest() as stop:
        team.train(left, min(jobs, len(left)), stop)
    if stop.requested:
        console.print(
            "Stopped; every cell has a checkpoint. The same command goes on with them.",
            highlight=False,
        )
        return INTERRUPTED, False
    for name, message in team.failures:
        console.print(f"{name} failed: {message}", soft_wrap=True, highlight=False, style="red")
    return (1 if team.failures else 0), len(team.failures) < len(work)


class _Team:
    """Workers, a thread for each that hands it cells and reads its answers.

    Attributes:
        failures: names of cells that failed, and why.
    """

    def __init__(self, out: Path, console: Console, done: int, total: int) -> None:
        self.failures: list[tuple[str, str]] = []
        self._out, self._console = out, console
        self._cells: queue.SimpleQueue[tuple[str, Settings]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._stopped = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total} cells"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("grid", total=total, completed=done)

    def train(self, cells: _Work, workers: int, stop: StopRequest) -> None:
        """Trains the cells, until all are done or the stop is requested."""
        for entry in cells:
            self._cells.put(entry)
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        with self._progress:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                if stop.requested and not self._stopped:
                    self._stop()
                time.sleep(0.1)  # the main thread must wake up to handle signals

    def _stop(self) -> None:
        """Asks every worker, once, to save itself and end."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)

    def _serve(self) -> None:
        process: subprocess.Popen[str] | None = None
        while not self._stopped:
            try:
                name, settings = self._cells.get_nowait()
            except queue.Empty:
                break
            if process is None or process.poll() is not None:
                process = self._start()
                if process is None:
                    break
            self._train_one(process, name, settings)
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait()

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", "sparsekern.training.grid.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this process, which asks them to stop
            )
            self._processes.append(process)
            return process

    def _train_one(self, process: subprocess.Popen[str], name: str, settings: Settings) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        order = {"settings": settings.as_json(), "directory": str(self._out / name)}
        told = 0.0
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: there is no answer to read
        for line in process.stdout:
            answer = json.loads(line)
            if "share" in answer:
                self._progress.advance(self._task, answer["share"] - told)
                told = answer["share"]
                continue
            if answer["result"] == "done":
                self._progress.advance(self._task, 1 - told)
                self._announce(name, answer["accuracies"])
            elif answer["result"] == "failed":
                self.failures.append((name, answer["message"]))
            return
        if not self._stopped:
            self.failures.append((name, f"its process ended with {process.wait()}"))

    def _announce(self, name: str, accuracies: Sequence[float]) -> None:
        mean = 100 * statistics.fmean(accuracies)
        self._console.print(
            f"{name}: accuracy {mean:.2f} % over {len(accuracies)} seed(s)", highlight=False
        )
