"""The compiled modules, loaded on first use; the reason is kept where one does not load.

``sparsekern._cpu`` is the compiled core, ``sparsekern._cuda`` the kernels that nvcc has built.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

ISA_VARIABLE = "SPARSEKERN_ISA"


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    # torch first: the compiled core takes its OpenMP symbols from the runtime that torch loads.
    importlib.import_module("torch")
    module, reason = _imported("_cpu")
    if module is not None:
        _apply_isa_choice(module)
    return module, reason


@functools.cache
def _load_cuda() -> tuple[ModuleType | None, str]:
    return _imported("_cuda")


def _imported(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"sparsekern.{name}"), ""
    except ImportError as error:
        # setup.py leaves this file beside the package when it built no such module.
        note = Path(__file__).with_name(f"{name}_build_note.txt")
        if note.exists():
            return None, note.read_text(encoding="utf-8").strip()
        return None, f"sparsekern.{name} does not load: {error}"


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


def cuda_missing_reason() -> str:
    """Why the CUDA kernels cannot be used, or an empty string where they can.

    Looks neither for a device nor creates a context on one: what is asked is whether the module is
    there and the installed driver serves the runtime in it.
    """
    module, reason = _load_cuda()
    if module is None or module.emulated:
        return reason
    built, served = module.runtime_version(), module.driver_version()
    if served == 0:
        return "no NVIDIA driver is installed (or libcuda.so.1 is not found)"
    if served // 1000 < built // 1000:
        return (
            f"it was built with CUDA {_version(built)}, and the installed driver serves CUDA "
            f"{_version(served)} at most: update the driver, or build with an nvcc of that version"
        )
    return ""


def cuda() -> ModuleType:
    """The CUDA kernels.

    Raises:
        RuntimeError: with the reason, where they were not built or do not load.
    """
    module, reason = _load_cuda()
    if module is None:
        raise RuntimeError(f"the cuda back end is not available: {reason}")
    return module


def cuda_is_emulated() -> bool:
    """Whether the module is the emulation that tests build: its kernels run on CPU tensors."""
    module, _ = _load_cuda()
    return module is not None and bool(module.emulated)


def cuda_build() -> str:
    """The CUDA version that the kernels were built with, or an empty string without them."""
    module, _ = _load_cuda()
    return "" if module is None else _version(module.runtime_version())


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
