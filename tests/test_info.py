"""``sparsekern.info()``: what it says, and what it says when something is missing."""

from __future__ import annotations

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch, native


def test_names_versions_and_every_back_end() -> None:
    found = sk.info()
    assert found.version == sk.__version__
    assert found.torch == torch.__version__
    assert tuple(backend.name for backend in found.backends) == dispatch.BACKENDS
    text = str(found)
    for expected in (sk.__version__, torch.__version__, *dispatch.BACKENDS, "Python", "platform"):
        assert expected in text


def test_gives_the_reason_of_each_missing_back_end() -> None:
    for backend in sk.info().backends:
        assert backend.available == (dispatch.missing_reason(backend.name) == "")
        assert backend.reason in str(sk.info())


def test_compiled_core() -> None:
    found = sk.info()
    reason = native.cpu_missing_reason()
    assert (found.cpu is None) == bool(reason)
    if found.cpu is not None:
        assert found.cpu.isa in found.cpu.available_isas
        assert found.cpu.threads == torch.get_num_threads()
        assert found.cpu.isa in str(found)


def test_without_the_compiled_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "no compiler was found"))
    found = sk.info()
    assert found.cpu is None
    assert "missing: no compiler was found" in str(found)


def test_reports_an_impossible_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise RuntimeError("SPARSEKERN_ISA asks for 'sse9'")

    monkeypatch.setattr(native, "_load", load)
    assert "missing: SPARSEKERN_ISA asks for 'sse9'" in str(sk.info())
