"""A process that dies in the middle of a training is resumed exactly, with every method."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sparsekern.training import loop
from sparsekern.training.catalogue import METHODS

from .test_train import without_times


def words_of(method):
    """Options that make a method's training short."""
    return {"lth": ["--set", "lth.rounds=1"]}.get(method, [])


class Death(BaseException):
    """The process ends: nothing more is written."""


@pytest.mark.parametrize("method", tuple(METHODS))
def test_a_death_is_resumed_exactly(method, train, tmp_path, monkeypatch):
    """In the middle of an epoch that is not the first, and once more later."""
    words = f"--model resnet8 --width 4 --epochs 4 --seeds 1 --threads 1 --method {method}"
    words += " --sparsity 0.9 --regularizer ckasr --regularizer layersparsity"
    options = [*words.split(), *words_of(method)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*options, "--out", whole) == 0
    original, left = loop.TrainingRun.step, [17]

    def step(run):
        left[0] -= 1
        if left[0] == 0:
            raise Death
        return original(run)

    monkeypatch.setattr(loop.TrainingRun, "step", step)
    with pytest.raises(Death):
        train(*options, "--out", parts)
    left[0] = 20
    with pytest.raises(Death):
        train("--resume", "--out", parts)
    monkeypatch.undo()
    assert train("--resume", "--out", parts) == 0
    assert without_times(parts) == without_times(whole)


def test_a_process_that_is_ended_is_resumed_exactly(train, tmp_path):
    """By SIGTERM, which it answers, and by SIGKILL, which it cannot: both at a time."""
    words = "--model resnet8 --width 4 --epochs 8 --seeds 1 --threads 1 --method rigl"
    deaths = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 130}
    processes = {}
    for death in deaths:
        command = [sys.executable, "-m", "sparsekern", "train", *words.split()]
        processes[death] = subprocess.Popen(
            [*command, "--out", str(tmp_path / death.name)], stdout=subprocess.DEVNULL
        )
    alive, deadline = set(deaths), time.monotonic() + 60
    try:
        while alive and time.monotonic() < deadline:
            for death in list(alive):
                if (tmp_path / death.name / "checkpoint.pt").exists():
                    os.kill(processes[death].pid, death)
                    alive.remove(death)
            time.sleep(0.002)
        statuses = {death: process.wait(timeout=60) for death, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    assert statuses == deaths
    whole = tmp_path / "whole"
    assert train(*words.split(), "--out", whole) == 0
    for death in deaths:
        parts = tmp_path / death.name
        assert len(without_times(parts)) < len(without_times(whole))
        assert train("--resume", "--out", parts) == 0
        assert without_times(parts) == without_times(whole)


def test_a_full_disk_is_told_and_loses_nothing(train, refused, small, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*small, "--out", whole) == 0
    write, left = os.write, [2]

    def full(descriptor, content):
        left[0] -= 1
        if left[0] == 0:  # half of the second line finds room
            return write(descriptor, content[: len(content) // 2])
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    line = refused(*small, "--out", parts)
    assert "cannot be written to (No space left on device)" in line
    assert "--resume" in line
    monkeypatch.undo()
    assert len(without_times(parts)) == 1
    assert train("--resume", "--out", parts) == 0
    assert without_times(parts) == without_times(whole)


def test_a_full_disk_keeps_the_checkpoint_before(train, refused, small, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*small, "--out", whole) == 0
    save, left = torch.save, [2]

    def full(value, path):
        left[0] -= 1
        save(value, path)
        if left[0] == 0:
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    assert "No space left on device" in refused(*small, "--out", parts)
    monkeypatch.undo()
    assert not list(parts.glob("*.tmp"))
    assert train("--resume", "--out", parts) == 0
    assert without_times(parts) == without_times(whole)
