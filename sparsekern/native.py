"""The compiled core ``sparsekern._cpu``, loaded on first use; the reason is kept where it fails."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

# setup.py leaves this file beside the package when it built no compiled core.
_BUILD_NOTE = Path(__file__).with_name("_cpu_build_note.txt")
ISA_VARIABLE = "SPARSEKERN_ISA"


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    # torch first: the compiled core takes its OpenMP symbols from the runtime that torch loads.
    importlib.import_module("torch")
    try:
        module = importlib.import_module("sparsekern._cpu")
    except ImportError as error:
        if _BUILD_NOTE.exists():
            return None, _BUILD_NOTE.read_text(encoding="utf-8").strip()
        return None, f"sparsekern._cpu does not load: {error}"
    _apply_isa_choice(module)
    return module, ""


def _apply_isa_choice(module: ModuleType) -> None:
    name = os.environ.get(ISA_VARIABLE)
    if not name:
        return
    try:
        module.set_isa(name)
    except ValueError:
        available = ", ".join(module.available_isas())
        raise RuntimeError(
            f"the environment variable {ISA_VARIABLE} asks for {name!r}, "
            f"and the compiled core has here: {available}"
        ) from None


def cpu_missing_reason() -> str:
    """Why the compiled core cannot be used, or an empty string where it can.

    Raises:
        RuntimeError: if SPARSEKERN_ISA asks for an instruction set that this machine lacks: a
            mistake to be told, where falling back to the reference would hide it.
    """
    return _load()[1]


def cpu() -> ModuleType:
    """The compiled core.

    Raises:
        RuntimeError: with the reason, where it was not built or does not load, or where
            SPARSEKERN_ISA asks for an instruction set that this machine lacks.
    """
    module, reason = _load()
    if module is None:
        raise RuntimeError(f"the cpu back end is not available: {reason}")
    return module


def other_isas() -> list[str]:
    """The instruction sets that the compiled core could use here beside the one it uses."""
    module, _ = _load()
    if module is None:
        return []
    return [name for name in module.available_isas() if name != module.isa()]
