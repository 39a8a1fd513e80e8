"""The course of a training for TensorBoard, where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_SCALARS = ("train_loss", "train_accuracy", "penalty", "loss", "accuracy", "sparsity", "lr")
FOLDER = "tensorboard"


class EventLog:
    """Writes the epochs of one run as TensorBoard events; without TensorBoard it does nothing.

    Args:
        directory: of the experiment; events go to a folder in it, one for each run.
        variant: of the run.
        seed: of the run.
        epoch: epochs that were done before: what an interrupted training wrote after them is
            hidden.
    """

    def __init__(self, directory: Path, variant: str, seed: int, epoch: int) -> None:
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / FOLDER / f"{variant}-{seed}"
        self._writer = SummaryWriter(str(folder), purge_step=epoch + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds an epoch's record."""
        if self._writer is None:
            return
        values = {name: record[name] for name in _SCALARS}
        for kind, value in (record["dead_neurons"] or {}).items():
            values[f"dead_neurons/{kind}"] = value
        for name, value in values.items():
            self._writer.add_scalar(name, value, record["epoch"])

    def close(self) -> None:
        """Writes what is not yet written."""
        if self._writer is not None:
            self._writer.close()
