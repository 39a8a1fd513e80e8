"""The compiled core ``sparsekern._cpu``, loaded on first use; the reason is kept where it fails."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

# setup.py leaves this file beside the package when it built no compiled core.
_BUILD_NOTE = Path(__file__).with_name("_cpu_build_note.txt")


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    # torch first: its OpenMP runtime is then the one that the compiled core binds to.
    importlib.import_module("torch")
    try:
        return importlib.import_module("sparsekern._cpu"), ""
    except ImportError as error:
        if _BUILD_NOTE.exists():
            return None, _BUILD_NOTE.read_text(encoding="utf-8").strip()
        return None, f"sparsekern._cpu does not load: {error}"


def cpu_missing_reason() -> str:
    """Why the compiled core cannot be used, or an empty string where it can."""
    return _load()[1]


def cpu() -> ModuleType:
    """The compiled core.

    Raises:
        RuntimeError: with the reason, where it was not built or does not load.
    """
    module, reason = _load()
    if module is None:
        raise RuntimeError(f"the cpu back end is not available: {reason}")
    return module
