"""The compiled core's instruction sets: which there are, and how the environment chooses one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparsekern import native

from .expectations import needs_core

ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # from plainest to fastest


def _in_fresh_process(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, native.ISA_VARIABLE: isa}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@needs_core
def test_core_is_built_and_loads() -> None:
    assert native.cpu_missing_reason() == ""


@needs_core
def test_available_isas() -> None:
    available = native.cpu().available_isas()
    assert available[0] == "portable"
    assert available == [name for name in ISAS if name in available]
    assert set(native.other_isas()) == set(available) - {native.cpu().isa()}


@needs_core
def test_fastest_isa_is_the_default() -> None:
    code = "from sparsekern import native; core = native.cpu(); print(core.isa())"
    result = _in_fresh_process(code, "")
    assert result.stdout.strip() == native.cpu().available_isas()[-1], result.stderr


@needs_core
@pytest.mark.parametrize("isa", ISAS)
def test_environment_chooses_isa(isa: str) -> None:
    code = "from sparsekern import native; print(native.cpu().isa())"
    result = _in_fresh_process(code, isa)
    if isa in native.cpu().available_isas():
        assert result.stdout.strip() == isa, result.stderr
    else:
        assert result.returncode != 0
        assert f"RuntimeError: the environment variable {native.ISA_VARIABLE}" in result.stderr


@needs_core
def test_unknown_isa_is_an_error_and_no_silent_fallback() -> None:
    code = "import torch, sparsekern as sk; sk.gram(torch.ones(4, 4))"
    result = _in_fresh_process(code, "sse9")
    assert result.returncode != 0
    assert "RuntimeError: the environment variable SPARSEKERN_ISA asks for 'sse9'" in result.stderr
