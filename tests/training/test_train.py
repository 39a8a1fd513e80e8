"""The command as a whole: results, resuming, Ctrl-C, pictures."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sparsekern import interrupt
from sparsekern.training import loop
from sparsekern.training.store import Store

from .image_files import write_cifar10_python, write_image_folder


def without_times(directory):
    lines = (directory / "results.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture
def states(monkeypatch):
    """The final weights of every run that finishes, by loss and seed."""
    found = {}
    original = loop.TrainingRun.result

    def result(run):
        weights = {k: v.clone() for k, v in run.model.state_dict().items()}
        found[run.variant, run.seed] = weights
        return original(run)

    monkeypatch.setattr(loop.TrainingRun, "result", result)
    return found


@pytest.fixture
def stop_after(monkeypatch):
    """Sends this process a SIGINT inside the n-th step from now on."""
    original = loop.TrainingRun.step
    left = [None]

    def step(run):
        if left[0] is not None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return original(run)

    monkeypatch.setattr(loop.TrainingRun, "step", step)

    def arm(steps):
        left[0] = steps

    return arm


def test_results_table_and_pictures(train, small, tmp_path, capsys, pictures):
    assert train(*small, "--compare", "--seeds", 2, "--out", tmp_path) == 0
    records = without_times(tmp_path)
    runs = [r for r in records if r["kind"] == "run"]
    assert [(r["seed"], r["regularizer"]) for r in runs] == [
        (0, "none"),
        (0, "ckasr"),
        (1, "none"),
        (1, "ckasr"),
    ]
    for run in runs:
        epochs = [
            r
            for r in records
            if r["kind"] == "epoch"
            and (r["regularizer"], r["seed"]) == (run["regularizer"], run["seed"])
        ]
        assert [r["epoch"] for r in epochs] == [1, 2]
        assert epochs[-1]["accuracy"] == run["accuracy"]
        assert all((r["penalty"] > 0) == (run["regularizer"] == "ckasr") for r in epochs)
        assert run["kept"] == run["weights"] - int(0.9 * run["weights"])
        assert len(run["cka"]) == len(run["cka"][0]) == len(run["blocks"]) == 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    difference = [b["accuracy"] - a["accuracy"] for a, b in (runs[:2], runs[2:])]
    paired = summary["paired"]["accuracy"]
    assert paired["mean"] == pytest.approx(sum(difference) / 2)
    assert paired["standard_error"] == pytest.approx(abs(difference[0] - difference[1]) / 2)
    assert summary["cost"]["fused"] > 0
    assert 0 < summary["cost"]["plain"] < summary["cost"]["pairwise"]
    output = capsys.readouterr().out
    assert "mean ± std" in output
    assert "difference" in output
    for picture in ("accuracy.png", "cka.png", "cost.png"):
        assert str(tmp_path / picture) in output
        content = (tmp_path / picture).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
    assert not list(tmp_path.glob("*.tmp"))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_without_matplotlib_all_but_the_pictures_works(
    train, small, tmp_path, capsys, monkeypatch, pictures
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest),
    )
    assert train(*small, "--regularizer", "none", "--epochs", 1, "--out", tmp_path) == 0
    assert "pip install 'sparsekern[plots]'" in capsys.readouterr().out
    assert (tmp_path / "summary.json").exists()
    assert not list(tmp_path.glob("*.png"))


# In an epoch; on the last step of a run; three times, at last in the second epoch of the second.
@pytest.mark.parametrize("steps", [[5], [24], [7, 1, 30]])
def test_interrupted_and_resumed_is_the_same(
    steps, train, small, tmp_path, capsys, states, stop_after
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*small, "--compare", "--every", 5]
    assert train(*options, "--out", whole) == 0
    expected = dict(states)
    states.clear()
    stop_after(steps[0])
    assert train(*options, "--out", parts) == 130
    assert f"sparsekern train --resume --out {parts}" in capsys.readouterr().out
    for more in steps[1:]:
        stop_after(more)
        assert train("--resume", "--out", parts) == 130
    stop_after(None)
    assert train("--resume", "--out", parts) == 0
    assert without_times(parts) == without_times(whole)
    for run, weights in states.items():
        for name, value in weights.items():
            assert torch.equal(value, expected[run][name]), (run, name)


@pytest.mark.parametrize("data", ["cifar10", "imagefolder"])
def test_images_from_disk_are_trained_on_and_resumed_exactly(
    data, train, tmp_path, states, stop_after
):
    """Augmentation, too, goes on as it would have."""
    (write_cifar10_python if data == "cifar10" else write_image_folder)(tmp_path, 10)
    options = f"--data {data} --data-dir {tmp_path} --image-size 16 --model resnet8 --width 4"
    options += " --batch-size 8 --epochs 2 --seeds 1 --threads 1 --regularizer none"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*options.split(), "--out", whole) == 0
    expected = dict(states)
    stop_after(5)
    assert train(*options.split(), "--out", parts) == 130
    stop_after(None)
    assert train("--resume", "--out", parts) == 0
    assert without_times(parts) == without_times(whole)
    for name, value in states["none", 0].items():
        assert torch.equal(value, expected["none", 0][name]), name


def test_resuming_a_finished_training_repeats_its_report(train, small, tmp_path, capsys, pictures):
    assert train(*small, "--out", tmp_path) == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "cka.png").unlink()
    capsys.readouterr()
    assert train("--resume", "--out", tmp_path) == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert (tmp_path / "cka.png").exists()


def test_a_sigint_from_outside_is_resumed_exactly(train, small, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*small, "--epochs", "6"]
    assert train(*options, "--out", whole) == 0
    command = [sys.executable, "-m", "sparsekern", "train", *options, "--out", str(parts)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    results = parts / "results.jsonl"
    deadline = time.monotonic() + 60
    while not (results.exists() and results.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert (parts / "checkpoint.pt").exists()
    assert len(without_times(parts)) < len(without_times(whole))
    assert train("--resume", "--out", parts) == 0
    assert without_times(parts) == without_times(whole)


def test_a_crash_in_the_middle_of_a_line_is_resumed(train, small, tmp_path, stop_after):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*small, "--out", whole) == 0
    stop_after(15)
    assert train(*small, "--out", parts) == 130
    stop_after(None)
    # As if the process had died after the epoch's line and before its checkpoint, and once more
    # while it wrote the next line.
    lines = (whole / "results.jsonl").read_text().splitlines(keepends=True)
    (parts / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    assert train("--resume", "--out", parts) == 0
    assert without_times(parts) == without_times(whole)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save_checkpoint({"epoch": 1})

    def broken(value, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        store.save_checkpoint({"epoch": 2})
    assert store.load_checkpoint() == {"epoch": 1}


def test_a_second_ctrl_c_stops_at_once_and_handlers_return():
    before = signal.getsignal(signal.SIGINT)
    with interrupt.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_demo_compares_and_can_be_repeated(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seeds in (1, 2):
        tiny = ["--width", 4, "--epochs", 1, "--seeds", seeds, "--threads", 1]
        assert train("--demo", *tiny) == 0
        runs = [r for r in without_times(tmp_path / "runs/demo") if r["kind"] == "run"]
        assert [r["regularizer"] for r in runs] == ["none", "ckasr"] * seeds
