"""A process of ``sparsekern grid``: trains the cells that it reads from its input, one by one.

``python -m sparsekern.training.grid.worker`` reads a line of JSON for each cell, and answers in
lines of JSON: ``share`` of the cell that is done, then ``result`` (one of ``"done"``,
``"stopped"``, ``"failed"``) with ``accuracies`` or ``message``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ...interrupt import StopRequest
from ..experiment import train_all
from ..loop import Record, TrainingRun
from ..settings import Settings
from ..store import Store, holds_results

DONE, STOPPED, FAILED = "done", "stopped", "failed"


class _Teller:
    """Writes the share of a cell that is done, after every epoch."""

    def __init__(self) -> None:
        self._place = (0, 1)

    def begin(self, run: TrainingRun, index: int, runs: int) -> None:
        """See :class:`~sparsekern.training.experiment.Watcher`."""
        self._place = (index, runs)

    def step(self, run: TrainingRun) -> None:
        """See :class:`~sparsekern.training.experiment.Watcher`."""

    def epoch(self, run: TrainingRun, record: Record) -> None:
        """See :class:`~sparsekern.training.experiment.Watcher`."""
        index, runs = self._place
        tell({"share": (index + run.epoch / run.epochs) / runs})

    def end(self, result: Record) -> None:
        """See :class:`~sparsekern.training.experiment.Watcher`."""


def tell(message: dict[str, Any]) -> None:
    """Writes one line to the process that reads."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def train_cell(settings: Settings, directory: Path, stop: StopRequest) -> dict[str, Any]:
    """Trains or goes on with one cell; the answer to be told."""
    resume = holds_results(directory)
    try:
        finished = train_all(settings, directory, resume=resume, stop=stop, watcher=_Teller())
    except ValueError as error:
        return {"result": FAILED, "message": " ".join(str(error).split())}
    if not finished:
        return {"result": STOPPED}
    runs = [record for record in Store(directory).records() if record["kind"] == "run"]
    return {"result": DONE, "accuracies": [run["accuracy"] for run in runs]}


def main() -> None:
    """Trains until there is no more input, or it is asked to stop."""
    with StopRequest() as stop:
        for line in sys.stdin:
            cell = json.loads(line)
            tell(train_cell(Settings(**cell["settings"]), Path(cell["directory"]), stop))
            if stop.requested:
                return


if __name__ == "__main__":
    main()
