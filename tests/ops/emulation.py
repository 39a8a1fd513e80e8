"""The CUDA kernels compiled for the CPU: every line of them runs in tests without a GPU.

csrc/cuda/emulation.h says what is emulated. The module is built once per state of the sources, with
the C++ compiler that torch's own extensions would use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
# Fibers jump from stack to stack, which the fortified longjmp takes for a mistake.
_FLAGS = ["-x", "c++", "-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-fPIC", "-fvisibility=hidden"]
_FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DSPARSEKERN_EMULATED"]
_FLAGS += ["-fno-strict-aliasing"]  # nvcc has none either: 16 bytes are read at a time
# What this processor allows and a GPU does not (addresses that are no multiple of what is loaded
# there), or does differently (shifts by all bits of a word).
_KERNEL_FLAGS = ["-fsanitize=alignment,shift", "-fsanitize-undefined-trap-on-error"]


def module() -> ModuleType:
    """The module, built if need be."""
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    bindings = ROOT / "csrc/bindings"
    sources += [ROOT / "csrc/cuda/emulation.cpp", *sorted(bindings.glob("cuda*.cpp"))]
    headers = [*sorted((ROOT / "csrc/cuda").glob("*.h")), bindings / "cuda.h"]
    texts = [path.read_bytes() for path in [*sources, *headers]]
    mark = hashlib.sha256(b"".join([*texts, sys.version.encode()])).hexdigest()[:16]
    name = f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    target = ROOT / "build/emulation" / mark / name
    if not target.exists():
        _build(sources, target)
    spec = importlib.util.spec_from_file_location("_cuda_emulated", target)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _build(sources: list[Path], target: Path) -> None:
    import pybind11

    include = [f"-I{path}" for path in (ROOT / "csrc", pybind11.get_include())]
    include.append(f"-I{sysconfig.get_path('include')}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:

        def compile_one(source: Path) -> str:
            made = str(Path(folder, source.name + ".o"))
            flags = [*_FLAGS, *(_KERNEL_FLAGS if source.suffix == ".cu" else [])]
            _run([str(COMPILER), *flags, *include, "-c", str(source), "-o", made])
            return made

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sources))
        linked = Path(folder, target.name)
        _run([str(COMPILER), "-shared", *objects, "-o", str(linked)])
        linked.replace(target)  # at once, for other processes look for it too


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
