"""Which back end runs: by request, by environment, by device; and the errors of impossible ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch, native
from sparsekern.ops import registry

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


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton installed, compiling and not interpreting, and a GPU of capability 9.0."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    dispatch._triton_refuses.cache_clear()
    yield
    dispatch._triton_refuses.cache_clear()


@pytest.mark.usefixtures("with_triton", "with_core")
def test_auto_takes_triton_on_a_gpu() -> None:
    assert dispatch.missing_reason("triton") == ""
    assert dispatch.select(GPU) == "triton"
    assert dispatch.select(torch.device("xpu", 1)) == "triton"
    assert dispatch.select(CPU) == "cpu"
    assert dispatch.select(torch.device("mps")) == "reference"


@pytest.mark.usefixtures("with_triton")
def test_triton_does_not_run_elsewhere() -> None:
    for device in (CPU, torch.device("mps")):
        with sk.backend("triton"), pytest.raises(RuntimeError, match=f"these are on {device.type}"):
            dispatch.select(device)


@pytest.mark.usefixtures("with_triton")
def test_old_gpus_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert dispatch.select(GPU) == "reference"
    with sk.backend("triton"), pytest.raises(RuntimeError, match=r"8\.0, and the device has 7\.5"):
        dispatch.select(GPU)
    monkeypatch.setattr(torch.version, "hip", "6.0")  # AMD counts otherwise
    dispatch._triton_refuses.cache_clear()
    assert dispatch.select(GPU) == "triton"


@pytest.mark.usefixtures("with_triton")
def test_why_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert "torch sees no GPU here" in dispatch.missing_reason("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.missing_reason("triton") == ""
    with sk.backend("triton"):
        assert dispatch.select(CPU) == "triton"
    assert dispatch.select(GPU) == "reference"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert dispatch.missing_reason("triton") == "Triton is not installed"
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        sk.backend("triton").__enter__()


@pytest.mark.usefixtures("with_triton")
def test_families_without_triton_kernels() -> None:
    reference, core = ModuleType("package.masked.reference"), ModuleType("package.masked.cpu")
    assert registry.back_end(GPU, reference, core) is reference
    with (
        sk.backend("triton"),
        pytest.raises(RuntimeError, match="has no kernels for masked operators"),
    ):
        registry.back_end(GPU, reference, core)
