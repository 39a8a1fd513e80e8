"""Which back end runs: by request, by environment, by device; and the errors of impossible ones."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch, native

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.fixture
def no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "no compiler was found"))


@pytest.fixture
def with_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (object(), ""))


@pytest.mark.usefixtures("with_core")
def test_auto_takes_the_core_for_cpu_tensors_and_the_reference_elsewhere() -> None:
    assert dispatch.select(CPU) == "cpu"
    assert dispatch.select(GPU) == "reference"


@pytest.mark.usefixtures("no_core")
def test_auto_falls_back_to_the_reference() -> None:
    assert dispatch.select(CPU) == "reference"


@pytest.mark.usefixtures("with_core")
def test_innermost_request_wins_and_ends_with_its_block() -> None:
    with sk.backend("reference"):
        assert dispatch.select(CPU) == "reference"
        with sk.backend("auto"):
            assert dispatch.select(CPU) == "cpu"
        assert dispatch.select(CPU) == "reference"
    assert dispatch.select(CPU) == "cpu"


@pytest.mark.usefixtures("with_core")
def test_request_ends_with_its_block_after_an_error() -> None:
    with pytest.raises(KeyError), sk.backend("reference"):
        raise KeyError
    assert dispatch.select(CPU) == "cpu"


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*, got 'gpu'"):
        sk.backend("gpu").__enter__()


@pytest.mark.usefixtures("no_core")
def test_missing_back_end_is_an_error_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match="the cpu back end is not available: no compiler"):
        sk.backend("cpu").__enter__()


@pytest.mark.parametrize("name", dispatch.BACKENDS)
def test_request_works_exactly_where_no_reason_is_given(name: str) -> None:
    reason = dispatch.missing_reason(name)
    if reason:
        with pytest.raises(RuntimeError, match="is not available"):
            sk.backend(name).__enter__()
    else:
        with sk.backend(name):
            assert dispatch.select(CPU) == name


@pytest.mark.usefixtures("with_core")
def test_core_does_not_run_on_other_devices() -> None:
    with sk.backend("cpu"), pytest.raises(RuntimeError, match="these are on cuda"):
        dispatch.select(GPU)


@pytest.mark.usefixtures("no_core")
def test_native_module_raises_the_reason() -> None:
    with pytest.raises(RuntimeError, match="no compiler was found"):
        native.cpu()


@pytest.mark.parametrize(
    ("value", "last_line"),
    [
        ("reference", "reference"),
        (
            "fastest",
            "ValueError: the environment variable SPARSEKERN_BACKEND must be one of "
            "auto, reference, cpu, triton, cuda, got 'fastest'",
        ),
    ],
)
def test_environment(value: str, last_line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEKERN_BACKEND", value)
    code = (
        "import torch; from sparsekern import dispatch;print(dispatch.select(torch.device('cpu')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout + result.stderr).strip().splitlines()[-1] == last_line
