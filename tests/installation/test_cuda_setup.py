"""Builds of the CUDA kernels with a stand-in for nvcc, with none, and with one that fails.

The stand-in compiles with the C++ compiler and writes down what it was asked for; a real nvcc is
not needed, and is not looked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTE = "_cuda_build_note.txt"
# In C's own words, for pybind11 takes seconds to compile.
BINDING = """#include <Python.h>
int two();
static PyObject* call(PyObject*, PyObject*) { return PyLong_FromLong(two()); }
static PyMethodDef methods[] = {{"two", call, METH_NOARGS, nullptr}, {}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, methods,
                                 nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&definition); }
"""
NVCC = """#!/bin/sh
echo "$@" >> "$NVCC_LOG"
case "$*" in
--list-gpu-code) printf "${NVCC_KNOWS:-sm_80 sm_86 sm_90}" ;;
--version) echo "release ${NVCC_RELEASE:-12.4}" ;;
*--dryrun*) echo "#$ TOP=$TOOLKIT" >&2 ;;
*) while [ $# -gt 1 ]; do
       case $1 in -MF) deps=$2 ;; -o) out=$2 ;; esac
       shift
   done
   case "$NVCC_FAILS" in ?*) seq 20; echo "error: unsupported GNU version" >&2; exit 2 ;; esac
   exec c++ -x c++ -fPIC -MD -MF "$deps" -Icsrc -c "$1" -o "$out" ;;
esac
"""


class Tree:
    """A copy of the package with one kernel file, and a toolkit with the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.toolkit = folder / "package", folder / "toolkit"
        (self.folder / "sparsekern").mkdir(parents=True)
        for name in ("setup.py", "pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, self.folder)
        (self.folder / "README.md").write_text("a copy\n")
        for name in ("__init__.py", "_version.py", "native.py"):
            shutil.copy(ROOT / "sparsekern" / name, self.folder / "sparsekern")
        for folder_name in ("csrc/bindings", "csrc/cuda"):
            (self.folder / folder_name).mkdir(parents=True)
        (self.folder / "csrc/bindings/cuda.cpp").write_text(BINDING)
        (self.folder / "csrc/cuda/two.h").write_text("constexpr int kTwo = 2;\n")
        (self.folder / "csrc/cuda/two.cu").write_text(
            '#include "cuda/two.h"\nint two() { return kTwo; }\n'
        )
        self.log = folder / "log"
        (self.toolkit / "bin").mkdir(parents=True)
        (self.toolkit / "lib64").mkdir()
        subprocess.run(["ar", "cr", self.toolkit / "lib64/libcudart_static.a"], check=True)
        nvcc = self.toolkit / "bin/nvcc"
        nvcc.write_text(NVCC)
        nvcc.chmod(0o755)

    def build(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        places = ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX", "CUDACXX", "SPARSEKERN_CUDA_ARCHS")
        environment = {name: value for name, value in os.environ.items() if name not in places}
        environment |= {
            "SPARSEKERN_CPU": "0",
            "SPARSEKERN_CUDA": "auto",
            "CUDACXX": str(self.toolkit / "bin/nvcc"),
            "NVCC_LOG": str(self.log),
            "TOOLKIT": str(self.toolkit),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "setup.py", *(command or ("build",))],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )

    def built(self, name: str) -> list[Path]:
        return list((self.folder / "build").glob(f"lib*/sparsekern/{name}"))

    def compilations(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if " -c " in line]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_with_nvcc(tree: Tree) -> None:
    result = tree.build(SPARSEKERN_CUDA="1")
    assert result.returncode == 0, result.stderr
    (module,) = tree.built("_cuda.*so")
    assert not tree.built(NOTE)
    code = (
        f"import sys; sys.path.insert(0, {str(module.parent)!r}); import _cuda; print(_cuda.two())"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout == "2\n", loaded.stderr
    (compilation,) = tree.compilations()
    codes = [word for word in compilation.split() if word.startswith("-gencode")]
    # What nvcc does not know is left out, and the highest of the rest comes as PTX too.
    assert codes == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def test_what_is_compiled_again(tree: Tree) -> None:
    (tree.folder / "csrc/cuda/other.cu").write_text("int other() { return 1; }\n")

    def compiled(**variables: str) -> list[str]:
        tree.log.unlink(missing_ok=True)
        result = tree.build(**{"SPARSEKERN_CUDA": "1", "SPARSEKERN_CUDA_ARCHS": "80", **variables})
        assert result.returncode == 0, result.stderr
        return sorted(line.rpartition("/")[2] for line in tree.compilations())

    assert compiled() == ["other.cu", "two.cu"]
    assert compiled() == []
    (tree.folder / "csrc/cuda/two.h").touch()
    assert compiled() == ["two.cu"]
    (tree.folder / "csrc/cuda/other.cu").touch()
    assert compiled() == ["other.cu"]
    (module,) = tree.built("_cuda.*so")
    linked = module.stat().st_mtime_ns
    assert compiled(SPARSEKERN_CUDA_ARCHS="90") == ["other.cu", "two.cu"]
    assert module.stat().st_mtime_ns > linked
    assert compiled(SPARSEKERN_CUDA_ARCHS="90", NVCC_RELEASE="12.5") == ["other.cu", "two.cu"]


def test_paths_with_spaces_and_dollars(tmp_path: Path) -> None:
    folder = tmp_path / "some $PLACE with spaces"
    folder.mkdir()
    tree = Tree(folder)
    temporary = ("--build-temp", f"{folder}/objects of $IT")
    result = tree.build("build_ext", "--inplace", *temporary, SPARSEKERN_CUDA="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list((tree.folder / "sparsekern").glob("_cuda.*so"))
    assert (folder / "objects of $IT/cuda/two.o").exists()


def test_without_ninja(tree: Tree) -> None:
    (tree.folder / "ninja.py").write_text("raise ImportError\n")
    result = tree.build(SPARSEKERN_CUDA="1")
    assert result.returncode != 0
    assert "nvcc is started by ninja, which is missing: pip install ninja" in result.stderr
    assert tree.build().returncode == 0
    assert "which is missing: pip install ninja" in tree.built(NOTE)[0].read_text()


def test_architectures_asked_for(tree: Tree) -> None:
    result = tree.build(SPARSEKERN_CUDA="1", SPARSEKERN_CUDA_ARCHS="80;90a+PTX")
    assert result.returncode == 0, result.stderr
    assert "compute_90a,code=compute_90a" in tree.compilations()[0]
    assert "sm_86" not in tree.compilations()[0]


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        ("8.0", "holds '8.0': expected entries such as 80, 90a or 120+ptx"),
        ("80 100", "holds '100', which"),
    ],
)
def test_architectures_that_are_none(tree: Tree, archs: str, message: str) -> None:
    result = tree.build(SPARSEKERN_CUDA="1", SPARSEKERN_CUDA_ARCHS=archs)
    assert result.returncode != 0
    assert message in result.stderr
    if archs != "8.0":
        assert "it knows 80, 86, 90" in result.stderr


def test_an_nvcc_that_is_too_old(tree: Tree) -> None:
    result = tree.build(SPARSEKERN_CUDA="1", NVCC_KNOWS="sm_50 sm_75")
    assert result.returncode != 0
    expected = "nvcc knows none of the architectures 80, 86, 89, 90a, 100, 120: CUDA 12.4 or newer"
    assert expected in result.stderr


def test_a_number_of_jobs_that_is_none(tree: Tree) -> None:
    result = tree.build(SPARSEKERN_BUILD_JOBS="many")
    assert result.returncode != 0
    assert "SPARSEKERN_BUILD_JOBS must be a number of files from 1 on, got 'many'" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_nvcc(tree: Tree) -> None:
    result = tree.build(CUDACXX="/no/such/nvcc")
    assert result.returncode == 0, result.stderr
    (note,) = tree.built(NOTE)
    assert note.read_text() == "nvcc was not found; looked at CUDACXX=/no/such/nvcc\n"
    assert "WITHOUT its CUDA kernels" not in result.stderr  # not loud: most machines have none
    assert "is built without its CUDA kernels: nvcc was not found" in result.stderr


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX", "PATH"])
def test_where_nvcc_is_found(tree: Tree, variable: str) -> None:
    place = f"{tree.toolkit}/bin:{os.environ['PATH']}" if variable == "PATH" else str(tree.toolkit)
    result = tree.build(SPARSEKERN_CUDA="1", CUDACXX="", **{variable: place})
    assert result.returncode == 0, result.stderr
    assert f"{tree.toolkit}/bin/nvcc" in result.stdout


def test_asked_for_without_nvcc_is_an_error_that_says_where_it_looked(tree: Tree) -> None:
    result = tree.build(SPARSEKERN_CUDA="1", CUDACXX="/no/such/nvcc")
    assert result.returncode != 0
    assert "SPARSEKERN_CUDA=1 asks for the CUDA kernels, and nvcc was not found" in result.stderr
    assert "CUDACXX=/no/such/nvcc" in result.stderr


def test_a_failing_build_installs_and_says_why(tree: Tree) -> None:
    result = tree.build(NVCC_FAILS="1")
    assert result.returncode == 0, result.stderr
    assert not tree.built("_cuda.*so")
    (note,) = tree.built(NOTE)
    assert note.read_text() == (
        "the CUDA kernels could not be built: nvcc failed on csrc/cuda/two.cu:\n"
        + "".join(f"{number}\n" for number in range(10, 21))
        + "error: unsupported GNU version\n"
    )
    assert "WITHOUT its CUDA kernels" in result.stderr
    assert "unsupported GNU version" in result.stderr
    assert tree.build(NVCC_FAILS="1", SPARSEKERN_CUDA="1").returncode != 0


def test_toolkit_without_the_runtime(tree: Tree) -> None:
    (tree.toolkit / "lib64/libcudart_static.a").unlink()
    result = tree.build()
    assert result.returncode == 0, result.stderr
    assert "has no libcudart_static.a in" in tree.built(NOTE)[0].read_text()


def test_left_out(tree: Tree) -> None:
    result = tree.build(SPARSEKERN_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert "SPARSEKERN_CUDA=0" in tree.built(NOTE)[0].read_text()
    assert not tree.log.exists()


def test_the_loader_gives_the_note(tree: Tree) -> None:
    assert tree.build("build_ext", "--inplace", NVCC_FAILS="1").returncode == 0
    (tree.folder / "sparsekern/__init__.py").write_text("")
    code = "from sparsekern import native; print(native.cuda_missing_reason()); native.cuda()"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree.folder, capture_output=True, text=True
    )
    assert "unsupported GNU version" in result.stdout
    assert "RuntimeError: the cuda back end is not available: the CUDA kernels" in result.stderr
