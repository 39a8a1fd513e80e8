"""The directory of one experiment: settings, results as JSON lines, checkpoint, trained weights."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from .events import FOLDER
from .settings import Settings

CONFIG, RESULTS, CHECKPOINT, SUMMARY = (
    "config.json",
    "results.jsonl",
    "checkpoint.pt",
    "summary.json",
)
WEIGHTS = "weights"  # folder of the networks whose runs are done
PICTURES = ("accuracy.png", "cka.png", "cost.png")
Record = dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file as a whole: a reader, or a crash, sees the old content or the new."""
    with _replacement(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the other's place if all went well, else it is removed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # before the name is: else a power failure leaves it empty
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def holds_results(directory: Path) -> bool:
    """Whether an experiment was started in this directory."""
    return any((directory / name).exists() for name in (CONFIG, RESULTS, CHECKPOINT))


def stored_settings(directory: Path) -> Settings:
    """The settings of the experiment in a directory.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    path = directory / CONFIG
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        raise ValueError(
            f"{directory} holds nothing to resume: leave out --resume, or give the --out of a run "
            "that was interrupted"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: start again with --overwrite") from None


class Store:
    """Reads and writes the files of one experiment.

    Args:
        directory: made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--out {directory} cannot be made: {error.strerror}; choose another directory"
            ) from None

    def start(self, settings: Settings) -> None:
        """Removes the files of an earlier experiment, if any, and writes the settings."""
        for name in (RESULTS, CHECKPOINT, SUMMARY, *PICTURES):
            (self.directory / name).unlink(missing_ok=True)
        for folder in (FOLDER, WEIGHTS):
            shutil.rmtree(self.directory / folder, ignore_errors=True)
        config = {
            "settings": settings.as_json(),
            "versions": {
                "sparsekern": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        self.write_json(CONFIG, config)

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file, atomically."""
        text = json.dumps(value, indent=2) + "\n"
        write_atomically(self.directory / name, text.encode())

    def append(self, record: Record) -> None:
        """Adds one line to the results, in a single write."""
        line = json.dumps(record) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(self.directory / RESULTS, flags, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line.encode()) < len(line.encode()):
                os.ftruncate(descriptor, size)  # no half lines
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def records(self) -> list[Record]:
        """All results; a last line that a crash cut short is left out."""
        try:
            text = (self.directory / RESULTS).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def rewind(self, checkpoint: dict[str, Any] | None) -> None:
        """Keeps the results that a resumed experiment will not make again.

        These are all lines of runs that are complete, and of the checkpoint's run the epochs
        before the checkpoint.
        """
        records = self.records()
        complete = {(r["regularizer"], r["seed"]) for r in records if r["kind"] == "run"}
        kept = []
        for record in records:
            key = (record["regularizer"], record["seed"])
            before_checkpoint = (
                checkpoint is not None
                and key == (checkpoint["regularizer"], checkpoint["seed"])
                and record["epoch"] <= checkpoint["epoch"]
            )
            if key in complete or before_checkpoint:
                kept.append(json.dumps(record) + "\n")
        write_atomically(self.directory / RESULTS, "".join(kept).encode())

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes the state of the run in progress, atomically."""
        with _replacement(self.directory / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state of the run in progress, or None where every started run is complete."""
        path = self.directory / CHECKPOINT
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}): remove it to repeat the run it "
                "belongs to, and resume again"
            ) from None
        return state

    def drop_checkpoint(self) -> None:
        """Forgets the run in progress: its result is in the results."""
        (self.directory / CHECKPOINT).unlink(missing_ok=True)

    def save_weights(self, state: dict[str, Any]) -> None:
        """Keeps the network of a run that is done, atomically.

        Args:
            state: ``regularizer``, ``seed`` and ``model``, as in a checkpoint.
        """
        folder = self.directory / WEIGHTS
        folder.mkdir(exist_ok=True)
        with _replacement(folder / f"{state['regularizer']}-{state['seed']}.pt") as temporary:
            torch.save(state, temporary)
