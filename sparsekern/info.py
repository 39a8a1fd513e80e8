"""What this installation can do, and why not more: ``sparsekern.info()``."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from . import dispatch, native
from ._version import __version__


@dataclass(frozen=True)
class BackendInfo:
    """One back end: its name, and why it cannot be used (empty where it can)."""

    name: str
    reason: str

    @property
    def available(self) -> bool:
        """Whether operators can run on it."""
        return not self.reason


@dataclass(frozen=True)
class CpuInfo:
    """The compiled core: instruction set in use, those to choose from, threads, compiler.

    ``rates`` is where the rates come from by which masked products choose an algorithm: the path
    of what ``sparsekern tune`` found for this instruction set and these threads, or None.
    """

    isa: str
    available_isas: tuple[str, ...]
    threads: int
    compiler: str
    rates: str | None = None


@dataclass(frozen=True)
class Info:
    """What :func:`info` returns; ``str()`` of it is the readable summary.

    ``cpu`` is None where the compiled core is missing (``backends`` holds the reason); ``triton``
    is None where it is not installed; ``launches`` is the path of the launch configurations that
    ``sparsekern tune`` found for its kernels, or None; ``cuda`` is None where torch was built
    without it.
    ``kernels`` is the version of CUDA that sparsekern's own kernels were built with, or None
    without them.
    """

    version: str
    backends: tuple[BackendInfo, ...]
    cpu: CpuInfo | None
    torch: str
    triton: str | None
    cuda: str | None
    cuda_devices: int
    kernels: str | None
    python: str
    platform: str
    launches: str | None = None

    def __str__(self) -> str:
        lines = [f"sparsekern {self.version}", "", "back ends"]
        for backend in self.backends:
            state = "available" if backend.available else f"missing: {backend.reason}"
            first, *more = state.splitlines()
            lines.append(f"  {backend.name:<10} {first}")
            lines += [f"  {'':<10} {line}" for line in more]
        if self.cpu is not None:
            choices = ", ".join(self.cpu.available_isas)
            lines += [
                "",
                "compiled core",
                f"  ISA        {self.cpu.isa} (of {choices}; {native.ISA_VARIABLE} overrides)",
                f"  threads    {self.cpu.threads} (torch.get_num_threads())",
                f"  compiler   {self.cpu.compiler}",
                f"  rates      {self.cpu.rates or 'as shipped (`sparsekern tune` measures them)'}",
            ]
        devices = f"{self.cuda_devices} device{'' if self.cuda_devices == 1 else 's'}"
        launches = self.launches or "as shipped (`sparsekern tune --device cuda` measures them)"
        cuda = "not in this build of torch" if self.cuda is None else f"{self.cuda}, {devices}"
        lines += [
            "",
            "environment",
            f"  torch      {self.torch}",
            f"  triton     {self.triton or 'not installed'}",
            f"  launches   {launches}",
            f"  CUDA       {cuda}",
            f"  kernels    {f'built with CUDA {self.kernels}' if self.kernels else 'not built'}",
            f"  Python     {self.python}",
            f"  platform   {self.platform}",
        ]
        return "\n".join(lines)


def info() -> Info:
    """Version, back ends with the reason for each that is missing, ISA, threads, libraries.

    Neither imports Triton nor creates a CUDA context.
    """
    backends = tuple(BackendInfo(name, _missing_reason(name)) for name in dispatch.BACKENDS)
    has_core = any(backend.name == "cpu" and backend.available for backend in backends)
    return Info(
        version=__version__,
        backends=backends,
        cpu=_cpu_info() if has_core else None,
        torch=torch.__version__,
        triton=_installed_version("triton"),
        cuda=torch.version.cuda,
        cuda_devices=torch.cuda.device_count(),
        kernels=native.cuda_build() or None,
        python=platform.python_version(),
        platform=platform.platform(),
        launches=_tuned_launches(),
    )


def _missing_reason(name: str) -> str:
    try:
        return dispatch.missing_reason(name)
    except RuntimeError as error:  # an impossible SPARSEKERN_ISA: reported here, raised elsewhere
        return str(error)


def _cpu_info() -> CpuInfo:
    from .ops.masked import rates

    core = native.cpu()
    isa, threads = str(core.isa()), torch.get_num_threads()
    return CpuInfo(
        isa=isa,
        available_isas=tuple(core.available_isas()),
        threads=threads,
        compiler=core.compiler(),
        rates=str(rates.cache_file()) if rates.tuned(isa, threads) else None,
    )


def _tuned_launches() -> str | None:
    from .ops.tiled import configurations

    return str(configurations.tuned_file()) if configurations.tuned_classes() else None


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
