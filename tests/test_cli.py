"""The command line: what it prints, its exit status, and one line for a wrong argument."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys

import pytest

import sparsekern as sk
from sparsekern import dispatch, native
from sparsekern.cli import main

COMMANDS = ["train", "grid", "effects", "report", "bench", "compare", "tune"]
FOLDERS = {
    "train": "training",
    "grid": "training.grid",
    "effects": "training.effects",
    "report": "training.reporting",
    "bench": "bench",
    "compare": "analysis",
    "tune": "tuning",
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


@pytest.mark.parametrize("error", [OSError(13, "Permission denied", "/out"), KeyboardInterrupt()])
def test_no_tracebacks_of_what_the_user_did(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("sparsekern.bench.command")

    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr(module, "run", run)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert main(["bench"]) == (130 if interrupted else 2)
    told = "interrupted" if interrupted else "error: [Errno 13] Permission denied: '/out'"
    assert capsys.readouterr().err == f"sparsekern bench: {told}\n"


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("fastest", "SPARSEKERN_BACKEND must be one of auto"),
        ("cuda", "SPARSEKERN_BACKEND asks for cuda, which is not available: there is none"),
        ("cpu", "SPARSEKERN_ISA asks for 'mmx'"),
    ],
)
def test_an_environment_that_cannot_be_is_one_line(
    backend: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong_isa() -> str:
        raise RuntimeError("SPARSEKERN_ISA asks for 'mmx'")

    monkeypatch.setattr(dispatch, "_environment", dispatch._environment.__wrapped__)
    monkeypatch.setenv("SPARSEKERN_BACKEND", backend)
    monkeypatch.setattr(native, "cuda_missing_reason", lambda: "there is none")
    if backend == "cpu":
        monkeypatch.setattr(native, "cpu_missing_reason", wrong_isa)
    assert main(["bench", "--list"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_an_output_that_is_ascii_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["info"]) == 0
    print("a ± b", flush=True)
    assert stream.buffer.getvalue().endswith(b"a ? b\n")  # type: ignore[attr-defined]


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "sparsekern", "bench", "--list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert error == ""


def test_exit_status_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sparsekern.training.command")
    monkeypatch.setattr(module, "run", lambda arguments: 3)
    assert main(["train"]) == 3
