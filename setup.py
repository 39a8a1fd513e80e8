"""Builds the compiled core ``sparsekern._cpu``; everything else about the package is in pyproject.

Environment:
    SPARSEKERN_CPU: ``auto`` (default) builds the core and, where that fails, says why and installs
        without it; ``1`` makes a failure an error; ``0`` does not try.
    SPARSEKERN_WERROR: ``1`` turns compiler warnings into errors.
    SPARSEKERN_BUILD_JOBS: how many files are compiled at a time (default: one per core).
"""

from __future__ import annotations

import os
import sys
import tempfile
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError, CompileError

PACKAGE = "sparsekern"
NOTE = "_cpu_build_note.txt"  # read by sparsekern/native.py
SKIPPED = "the package was installed with SPARSEKERN_CPU=0, which skips the compiled core"

FLAGS = [
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", *AVX2]
# By the last part of the file's name, as in csrc/cpu/isa/similarity_avx2.cpp: only these files may
# use instructions beyond the baseline; they are reached by run-time dispatch. A file whose flags
# the compiler does not know (AMX before GCC 11) is compiled without, to an empty table.
ISA_FLAGS = {
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512bf16": ["-mavx512bf16", *AVX512],
    "amx": ["-mamx-tile", "-mamx-bf16", "-mavx512bf16", *AVX512],
}


def choice(variable: str, allowed: tuple[str, ...]) -> str:
    """The value of an environment variable; the first of ``allowed`` where it is not set."""
    value = os.environ.get(variable) or allowed[0]
    if value not in allowed:
        sys.exit(f"{variable} must be one of {', '.join(allowed)}, got {value!r}")
    return value


CPU = choice("SPARSEKERN_CPU", ("auto", "1", "0"))
WERROR = choice("SPARSEKERN_WERROR", ("0", "1"))


def leave_note(package_dir: Path, reason: str) -> None:
    """Records beside the package why it has no compiled core, or removes an outdated record."""
    note = package_dir / NOTE
    if not reason:
        note.unlink(missing_ok=True)
        return
    package_dir.mkdir(parents=True, exist_ok=True)
    for outdated in package_dir.glob("_cpu.*so"):  # an extension of an earlier build
        outdated.unlink()
    note.write_text(reason + "\n", encoding="utf-8")
    lines = [
        "sparsekern is installed WITHOUT its compiled CPU core.",
        f"Why:  {reason}.",
        "Then: every operator runs on the plain-PyTorch reference: the same results, slower.",
        "Fix:  install a C++17 compiler (g++ or clang++) and Python's headers, then install again;",
        "      SPARSEKERN_CPU=1 makes a failing build an error. See also `sparsekern info`.",
    ]
    rule = "*" * 100
    print("\n".join(["", rule, *(f"* {line}" for line in lines), rule, ""]), file=sys.stderr)


class BuildPackage(build_py):
    """Copies the Python files, and leaves the note where the core was not asked for."""

    def run(self) -> None:
        """Runs the command."""
        super().run()
        if CPU == "0":
            leave_note(Path("" if self.editable_mode else self.build_lib, PACKAGE), SKIPPED)


class BuildCore(build_ext):
    """Compiles the core, with more instructions for some files, and survives without a compiler."""

    failure = ""

    def run(self) -> None:
        """Runs the command."""
        super().run()
        leave_note(Path("" if self.inplace else self.build_lib, PACKAGE), self.failure)

    def build_extensions(self) -> None:
        """Compiles and links; a failure is kept in ``failure`` unless SPARSEKERN_CPU=1."""
        try:
            self._prepare_compiler()
            super().build_extensions()
        except (BaseError, CCompilerError, OSError) as error:
            if CPU == "1":
                raise
            self.failure = f"the compiled core could not be built: {error}"
            self.extensions = []  # nothing to copy into the source tree or to list as an output

    def _prepare_compiler(self) -> None:
        if self.compiler.compiler_type != "unix":
            raise CompileError(
                f"it needs g++ or clang++, and the compiler here is {self.compiler.compiler_type}"
            )
        if self._compiles("#include <omp.h>\n", ["-fopenmp"]):
            for extension in self.extensions:
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args += self._openmp_link_flags()
        else:
            print("warning: no -fopenmp here, the core will use one thread", file=sys.stderr)

        compile_one = self.compiler._compile
        known = {}
        if self.plat_name.lower().endswith(("x86_64", "amd64")):
            known = {isa: flags for isa, flags in ISA_FLAGS.items() if self._compiles("", flags)}

        def compile_with_isa(obj, src, ext, cc_args, extra_postargs, pp_opts):  # type: ignore
            flags = known.get(Path(src).stem.rpartition("_")[2], [])
            compile_one(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = compile_with_isa

    def _openmp_link_flags(self) -> list[str]:
        # g++ on Linux: no OpenMP library is named, so that the symbols are taken from the runtime
        # that torch has made global (libtorch_global_deps), whatever its file is called: torch's
        # wheels carry their own copy, in some versions under a name like libgomp-a34b3233.so.1, and
        # a second runtime would have its own threads. clang's calls need clang's own runtime.
        clang = not self._compiles("#ifdef __clang__\n#error clang\n#endif\n", [])
        return ["-fopenmp"] if clang or not sys.platform.startswith("linux") else []

    def _compiles(self, source: str, flags: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trial.cpp")
            path.write_text(source, encoding="utf-8")
            try:
                self.compiler.compile([str(path)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True


core = Pybind11Extension(
    f"{PACKAGE}._cpu",
    sorted([*glob("csrc/cpu/*.cpp"), *glob("csrc/cpu/isa/*.cpp"), *glob("csrc/bindings/*.cpp")]),
    include_dirs=["csrc"],
    depends=["setup.py", *sorted(glob("csrc/**/*.h", recursive=True))],
    cxx_std=17,
    extra_compile_args=FLAGS + (["-Werror"] if WERROR == "1" else []),
)

ParallelCompile("SPARSEKERN_BUILD_JOBS").install()
setup(
    ext_modules=[] if CPU == "0" else [core],
    cmdclass={"build_py": BuildPackage, "build_ext": BuildCore},
)
