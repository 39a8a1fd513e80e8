"""Builds the compiled parts: the core ``sparsekern._cpu``, and with nvcc ``sparsekern._cuda``.

Everything else about the package is in pyproject. docs/building.md explains the CUDA part.

Environment:
    SPARSEKERN_CPU: ``auto`` (default) builds the core and, where that fails, says why and installs
        without it; ``1`` makes a failure an error; ``0`` does not try.
    SPARSEKERN_CUDA: the same for the CUDA kernels; ``auto`` tries where nvcc is found. Whether the
        machine has a GPU does not matter.
    SPARSEKERN_CUDA_ARCHS: what GPUs to build for, such as ``80 90a 120+ptx`` (default: all below
        that nvcc knows, with PTX of the highest for GPUs to come).
    SPARSEKERN_WERROR: ``1`` turns compiler warnings, and registers spilled to memory, into errors.
    SPARSEKERN_BUILD_JOBS: how many files are compiled at a time (default: one per core, and for
        nvcc no more than fit the free memory).
    CUDACXX, CUDA_HOME, CUDA_PATH, CONDA_PREFIX: where nvcc is looked for, before PATH.
    CUDAHOSTCXX: the C++ compiler that nvcc is to use (default: nvcc's own choice).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError, CompileError

PACKAGE = "sparsekern"
# What each module is called in messages, and how its absence is mended; a note with the reason is
# left beside the package as _cpu_build_note.txt or _cuda_build_note.txt for sparsekern/native.py.
ABSENCES = {
    "_cpu": (
        "compiled CPU core",
        "every operator runs on the plain-PyTorch reference: the same results, slower.",
        "install a C++17 compiler (g++ or clang++) and Python's headers, then install again;",
        "SPARSEKERN_CPU=1 makes a failing build an error. See also `sparsekern info`.",
    ),
    "_cuda": (
        "CUDA kernels",
        "CUDA tensors take Triton or the plain-PyTorch reference: the same results.",
        "docs/building.md goes through the messages of nvcc and their cures;",
        "SPARSEKERN_CUDA=0 does not try, SPARSEKERN_CUDA=1 makes a failing build an error.",
    ),
}
SKIPPED = {
    "_cpu": "the package was installed with SPARSEKERN_CPU=0, which skips the compiled core",
    "_cuda": "the package was installed with SPARSEKERN_CUDA=0, which skips the CUDA kernels",
}

ARCHS = ("80", "86", "89", "90a", "100", "120")  # Ampere to Blackwell
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-lineinfo"]
NVCC_MEMORY = 2 << 30  # bytes that one nvcc may take

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
CUDA = choice("SPARSEKERN_CUDA", ("auto", "1", "0"))
WERROR = choice("SPARSEKERN_WERROR", ("0", "1"))
if not re.fullmatch(r"[1-9]\d*", os.environ.get("SPARSEKERN_BUILD_JOBS", "1")):
    sys.exit(
        "SPARSEKERN_BUILD_JOBS must be a number of files from 1 on, got "
        f"{os.environ['SPARSEKERN_BUILD_JOBS']!r}"
    )


class NotFoundError(Exception):
    """nvcc is not there, and nobody asked for it."""


def leave_note(package_dir: Path, module: str, reason: str, loud: bool = True) -> None:
    """Records beside the package why it lacks a module, or removes an outdated record."""
    note = package_dir / f"{module}_build_note.txt"
    if not reason:
        note.unlink(missing_ok=True)
        return
    package_dir.mkdir(parents=True, exist_ok=True)
    for outdated in package_dir.glob(f"{module}.*so"):  # an extension of an earlier build
        outdated.unlink()
    note.write_text(reason + "\n", encoding="utf-8")
    what, then, *fix = ABSENCES[module]
    if not loud:
        print(f"sparsekern is built without its {what}: {reason}", file=sys.stderr)
        return
    lines = [
        f"sparsekern is installed WITHOUT its {what}.",
        *(f"{'Why: ' if i == 0 else '     '} {line}" for i, line in enumerate(reason.split("\n"))),
        f"Then: {then}",
        f"Fix:  {fix[0]}",
        f"      {fix[1]}",
    ]
    rule = "*" * 100
    print("\n".join(["", rule, *(f"* {line}" for line in lines), rule, ""]), file=sys.stderr)


def find_nvcc() -> tuple[Path | None, list[str]]:
    """nvcc, or None; and the places that were looked at."""
    looked = []
    named = os.environ.get("CUDACXX")
    if named:
        found = shutil.which(named)
        return Path(found) if found else None, [f"CUDACXX={named}"]
    folders = []
    for variable in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        if os.environ.get(variable):
            folders.append((f"{variable}: ", Path(os.environ[variable], "bin")))
        else:
            looked.append(f"{variable} (not set)")
    folders += [("PATH: ", Path(folder)) for folder in os.get_exec_path()]
    folders.append(("", Path("/usr/local/cuda/bin")))
    for source, folder in folders:
        looked.append(f"{source}{folder}")
        found = shutil.which("nvcc", path=str(folder))
        if found:
            return Path(found), looked
    return None, looked


def static_runtime(nvcc: Path) -> Path:
    """The static runtime library in nvcc's toolkit."""
    # A wrapper on PATH knows where the rest is; the folder beside the file may hold nothing else.
    told = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    match = re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE)
    home = Path(match.group(1)) if match else nvcc.resolve().parents[1]
    places = ["lib64", "lib", "lib/x64", "targets/*/lib"]
    for place in places:
        for library in sorted(home.glob(f"{place}/libcudart_static.a")):
            return library
    raise CompileError(
        f"{nvcc} has no libcudart_static.a in {home} (looked in {', '.join(places)}): "
        "the toolkit is incomplete"
    )


def run_nvcc(command: list[str], show: bool = False) -> str:
    """What nvcc prints, or ninja that starts it; shown as it comes if asked for.

    Raises:
        CompileError: with the last that nvcc printed, if it fails.
    """
    printed = ""
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        with subprocess.Popen(command, env=environment, **pipes) as running:
            for line in running.stdout:
                printed += line
                if show:
                    print(line, end="", flush=True)
    except OSError as error:
        raise CompileError(f"{command[0]} does not run: {error}") from None
    if running.returncode:
        # ninja: its progress, that it failed, the command, what was printed, and more of that.
        pattern = r"nvcc (\S+)\nFAILED: [^\n]*\n[^\n]*\n(.*?)^(?:\[\d+/|ninja: )"
        found = re.search(pattern, printed, re.MULTILINE | re.DOTALL)
        what, told = found.groups() if found else (command[-1], printed)
        last = "\n".join(told.strip().splitlines()[-12:]) or "it printed nothing"
        raise CompileError(f"nvcc failed on {what}:\n{last}")
    return printed.strip()


def code_flags(nvcc: Path) -> list[str]:
    """nvcc's options for the architectures asked for, or for those of ARCHS that it knows."""
    listed = run_nvcc([str(nvcc), "--list-gpu-code"])
    known = set(re.findall(r"sm_(\d+)", listed))
    asked = re.split(r"[\s,;]+", os.environ.get("SPARSEKERN_CUDA_ARCHS", "").strip().lower())
    if asked == [""]:
        asked = [arch for arch in ARCHS if arch.rstrip("a") in known]
        if not asked:
            raise CompileError(
                f"{nvcc} knows none of the architectures {', '.join(ARCHS)}: CUDA 12.4 or newer "
                "is needed"
            )
        asked[-1] += "+ptx"
    flags = []
    for name in asked:
        arch, plus, rest = name.partition("+")
        if not re.fullmatch(r"\d{2,3}[af]?", arch) or (plus and rest != "ptx"):
            raise CompileError(
                f"SPARSEKERN_CUDA_ARCHS holds {name!r}: expected entries such as 80, 90a or 120+ptx"
            )
        if arch.rstrip("af") not in known:
            raise CompileError(
                f"SPARSEKERN_CUDA_ARCHS holds {name!r}, which {nvcc} does not know: it knows "
                f"{', '.join(sorted(known, key=int))}"
            )
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if plus:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


def nvcc_jobs() -> int:
    """How many nvcc run at a time: as many as there are cores, and no more than fit the memory."""
    told = os.environ.get("SPARSEKERN_BUILD_JOBS")
    if told:
        return int(told)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    except OSError:
        available = None
    fit = int(available.group(1)) * 1024 // NVCC_MEMORY if available else 2
    return max(1, min(cores or 1, fit))


def compile_all(command: list[str], folder: Path) -> list[str]:
    """Compiles csrc/cuda: those files of which the command, or what they include, has changed.

    Returns:
        The objects.
    """
    try:
        from ninja import Writer
    except ImportError:
        why = "nvcc is started by ninja, which is missing: pip install ninja"
        raise CompileError(why) from None
    # A comment that changes with nvcc, and the command with it.
    version = run_nvcc([command[0], "--version"]).rpartition("\n")[2]
    rule = shlex.join(command).replace("$", "$$") + f" -MD -MF $out.d -o $out -c $in # {version}"
    sources = [Path(name) for name in sorted(glob("csrc/cuda/*.cu"))]
    with Path(folder, "build.ninja").open("w", encoding="utf-8") as file:
        writer = Writer(file, width=sys.maxsize)
        writer.variable("builddir", str(folder).replace("$", "$$"))
        writer.rule("nvcc", rule, description="nvcc $in", depfile="$out.d", deps="gcc")
        for source in sources:
            writer.build(f"$builddir/{source.stem}.o", "nvcc", str(source))
    print(f"{command[0]}: csrc/cuda, {nvcc_jobs()} files at a time", flush=True)
    ninja = [sys.executable, "-m", "ninja", "-j", str(nvcc_jobs()), "-f", file.name]
    run_nvcc(ninja, show=True)
    return [str(folder / f"{source.stem}.o") for source in sources]


class BuildPackage(build_py):
    """Copies the Python files, and leaves the notes of what was not asked for."""

    def run(self) -> None:
        """Runs the command."""
        super().run()
        folder = Path("" if self.editable_mode else self.build_lib, PACKAGE)
        if CPU == "0":
            leave_note(folder, "_cpu", SKIPPED["_cpu"])
        if CUDA == "0":
            leave_note(folder, "_cuda", SKIPPED["_cuda"], loud=False)


class BuildCore(build_ext):
    """Compiles the core, with more instructions for some files, and survives without a compiler."""

    def run(self) -> None:
        """Runs the command."""
        self.failures: dict[str, str] = {}  # by module
        self.loud = {"_cpu": True, "_cuda": True}
        super().run()
        package_dir = Path("" if self.inplace else self.build_lib, PACKAGE)
        for extension in EXTENSIONS:
            module = extension.name.rpartition(".")[2]
            leave_note(package_dir, module, self.failures.get(module, ""), self.loud[module])

    def build_extensions(self) -> None:
        """Compiles and links; a failure is kept in ``failures`` unless the setting is 1."""
        wanted, built = self.extensions, []
        for extension in wanted:
            module = extension.name.rpartition(".")[2]
            must = (CPU if module == "_cpu" else CUDA) == "1"
            self.extensions = [extension]
            try:
                if module == "_cpu":
                    self._prepare_compiler()
                else:
                    self._compile_kernels(extension)
                super().build_extensions()
                built.append(extension)
            except NotFoundError as error:
                self.failures[module], self.loud[module] = str(error), False
            except (BaseError, CCompilerError, OSError) as error:
                if must:
                    raise
                self.failures[module] = f"the {ABSENCES[module][0]} could not be built: {error}"
        self.extensions = built  # the others are not copied nor listed as outputs

    def _compile_kernels(self, extension: Extension) -> None:
        """Compiles csrc/cuda with nvcc, and adds the objects to what is linked."""
        nvcc, looked = find_nvcc()
        if nvcc is None:
            reason = f"nvcc was not found; looked at {', '.join(looked)}"
            if CUDA == "1":
                raise CompileError(f"SPARSEKERN_CUDA=1 asks for the CUDA kernels, and {reason}")
            raise NotFoundError(reason)
        runtime = static_runtime(nvcc)
        command = [str(nvcc), *NVCC_FLAGS, *code_flags(nvcc), "-Icsrc"]
        command += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
        if WERROR == "1":
            command += ["-Werror", "all-warnings", "-Xptxas", "-warn-spills,-Werror"]
        if os.environ.get("CUDAHOSTCXX"):
            command += ["-ccbin", os.environ["CUDAHOSTCXX"]]
        folder = Path(self.build_temp, "cuda")
        if self.force:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        objects = compile_all(command, folder)
        extension.extra_objects = [*objects, str(runtime)]
        extension.depends += objects  # it is linked again where one is newer
        extension.libraries = ["dl", "rt", "pthread"]

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


HEADERS = sorted(glob("csrc/**/*.h", recursive=True))
CUDA_BINDINGS = sorted(glob("csrc/bindings/cuda*.cpp"))
core = Pybind11Extension(
    f"{PACKAGE}._cpu",
    sorted(
        {*glob("csrc/cpu/*.cpp"), *glob("csrc/cpu/isa/*.cpp"), *glob("csrc/bindings/*.cpp")}
        - {*CUDA_BINDINGS}
    ),
    include_dirs=["csrc"],
    depends=["setup.py", *(name for name in HEADERS if "/cuda" not in name)],
    cxx_std=17,
    extra_compile_args=FLAGS + (["-Werror"] if WERROR == "1" else []),
)
kernels = Pybind11Extension(
    f"{PACKAGE}._cuda",
    CUDA_BINDINGS,
    include_dirs=["csrc"],
    depends=[
        "setup.py",
        *(name for name in HEADERS if "/cuda" in name),
    ],
    cxx_std=17,
    extra_compile_args=FLAGS + (["-Werror"] if WERROR == "1" else []),
)
EXTENSIONS = ([] if CPU == "0" else [core]) + ([] if CUDA == "0" else [kernels])

ParallelCompile("SPARSEKERN_BUILD_JOBS").install()
setup(
    license="Apache-2.0",
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPackage, "build_ext": BuildCore},
)
