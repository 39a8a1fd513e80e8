"""Builds that have, lack or leave out a compiler, on a copy of the package with a tiny core."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTE = "_cpu_build_note.txt"
# In C's own words, for pybind11 takes seconds to compile.
CORE = """#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, nullptr,
                                 nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&definition); }
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("a copy\n")
    for name in ("__init__.py", "_version.py"):
        (tmp_path / "sparsekern").mkdir(exist_ok=True)
        shutil.copy(ROOT / "sparsekern" / name, tmp_path / "sparsekern")
    (tmp_path / "csrc/bindings").mkdir(parents=True)
    (tmp_path / "csrc/bindings/cpu.cpp").write_text(CORE)
    return tmp_path


def _build(tree: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPARSEKERN_CPU": "auto", "SPARSEKERN_CUDA": "0", **variables}
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )


def _built(tree: Path, name: str) -> list[Path]:
    return list((tree / "build").glob(f"lib*/sparsekern/{name}"))


def test_with_a_compiler(tree: Path) -> None:
    result = _build(tree, "build", SPARSEKERN_CPU="1", SPARSEKERN_WERROR="1")
    assert result.returncode == 0, result.stderr
    assert _built(tree, "_cpu.*so")
    assert not _built(tree, NOTE)
    assert "-march=native" not in result.stdout
    assert "-ffast-math" not in result.stdout


def test_without_a_compiler_installs_and_says_why(tree: Path) -> None:
    result = _build(tree, "build", CC="no-such-compiler", CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    assert not _built(tree, "_cpu.*so")
    (note,) = _built(tree, NOTE)
    assert "no-such-compiler" in note.read_text()
    assert "WITHOUT its compiled CPU core" in result.stderr
    assert "no-such-compiler" in result.stderr


def test_source_that_does_not_compile(tree: Path) -> None:
    (tree / "csrc/bindings/cpu.cpp").write_text("this is not C++\n")
    assert _build(tree, "build").returncode == 0
    assert _built(tree, NOTE)
    assert _build(tree, "build", SPARSEKERN_CPU="1").returncode != 0


def test_left_out(tree: Path) -> None:
    result = _build(tree, "build", SPARSEKERN_CPU="0", CC="no-such-compiler")
    assert result.returncode == 0, result.stderr
    (note,) = _built(tree, NOTE)
    assert "SPARSEKERN_CPU=0" in note.read_text()
    assert "no-such-compiler" not in result.stdout + result.stderr


def test_in_place_failure_replaces_the_core_and_success_the_note(tree: Path) -> None:
    package = tree / "sparsekern"
    assert _build(tree, "build_ext", "--inplace").returncode == 0
    assert list(package.glob("_cpu.*so"))
    (tree / "csrc/bindings/cpu.cpp").write_text("this is not C++\n")
    assert _build(tree, "build_ext", "--inplace", "--force").returncode == 0
    assert not list(package.glob("_cpu.*so"))
    assert (package / NOTE).exists()
    (tree / "csrc/bindings/cpu.cpp").write_text(CORE)
    assert _build(tree, "build_ext", "--inplace", "--force").returncode == 0
    assert list(package.glob("_cpu.*so"))
    assert not (package / NOTE).exists()


def test_wrong_setting_is_one_line(tree: Path) -> None:
    result = _build(tree, "build", SPARSEKERN_CPU="yes")
    assert result.returncode != 0
    assert result.stderr == "SPARSEKERN_CPU must be one of auto, 1, 0, got 'yes'\n"
