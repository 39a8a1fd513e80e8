"""The command line: what it prints, its exit status, and one line for a wrong argument."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import sparsekern as sk
from sparsekern.cli import main

COMMANDS = ["train", "grid", "effects", "report", "bench", "compare"]
FOLDERS = {
    "train": "training",
    "grid": "training.grid",
    "effects": "training.effects",
    "report": "training.reporting",
    "bench": "bench",
    "compare": "analysis",
}
ARGUMENTS = {"report": ["runs"], "compare": ["net"]}


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out == f"{sk.info()}\n"


def test_without_a_command_prints_info_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{sk.info()}\n")
    assert "usage: sparsekern info | train | grid | effects | report | bench | compare" in out


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "sparsekern", "info"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.startswith(f"sparsekern {sk.__version__}\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"sparsekern {sk.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: sparsekern {command}")


@pytest.mark.parametrize(
    "arguments",
    [["explode"], ["info", "--loud"], ["train", "--no-such-option"], ["bench", "--no-such-option"]],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "error: " in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_value_error_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"sparsekern.{FOLDERS[command]}.command")

    def run(arguments: object) -> int:
        raise ValueError("--sparsity must be in [0, 1),\n got 1.5")

    monkeypatch.setattr(module, "run", run)
    assert main([command, *ARGUMENTS.get(command, [])]) == 2
    message = f"sparsekern {command}: error: --sparsity must be in [0, 1), got 1.5\n"
    assert capsys.readouterr().err == message


def test_exit_status_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sparsekern.training.command")
    monkeypatch.setattr(module, "run", lambda arguments: 3)
    assert main(["train"]) == 3
