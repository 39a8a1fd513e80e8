"""Which back end runs an operator on a device, and why not another."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator

import torch

from . import native

BACKENDS = ("reference", "cpu", "triton", "cuda")
_CHOICES = ("auto", *BACKENDS)
_CPU = torch.device("cpu")
# What Triton's own back ends drive. NVIDIA GPUs before compute capability 8.0 lack the tensor-core
# modes that the kernels ask for.
_TRITON_DEVICES = ("cuda", "xpu")
_LEAST_CAPABILITY = (8, 0)


def _checked(name: str, source: str) -> str:
    if name not in _CHOICES:
        raise ValueError(f"{source} must be one of {', '.join(_CHOICES)}, got {name!r}")
    return name


# The back end asked for by the innermost ``backend(...)``; None: the environment decides. One for
# the process, as torch's own switches are: worker threads (DataParallel, autograd) see it, and
# torch.compile guards on it.
_requested: str | None = None


def requested() -> str:
    """The back end asked for: the innermost ``backend(...)``, else SPARSEKERN_BACKEND, or auto."""
    return _requested or _environment()


@functools.cache
def _environment() -> str:
    value = os.environ.get("SPARSEKERN_BACKEND", "auto")
    return _checked(value, "the environment variable SPARSEKERN_BACKEND")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs the operators inside the ``with`` block on one back end, in every thread.

    Args:
        name: ``"reference"`` (plain PyTorch), ``"cpu"`` (the compiled core), ``"triton"``,
            ``"cuda"``, or ``"auto"``: the fastest that works on the tensor's device.

    Raises:
        ValueError: if the name is not one of these.
        RuntimeError: with the reason, if that back end is missing here.
    """
    _checked(name, "backend")
    reason = missing_reason(name)
    if reason:
        raise RuntimeError(f"the {name} back end is not available: {reason}")
    global _requested
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def missing_reason(name: str) -> str:
    """Why a back end cannot be used here, or an empty string where it can."""
    if name == "cpu":
        return native.cpu_missing_reason()
    if name == "triton":
        return _triton_missing_reason()
    if name == "cuda":
        return _cuda_missing_reason()
    return ""


def _cuda_missing_reason() -> str:
    reason = native.cuda_missing_reason()
    if reason or native.cuda_is_emulated():
        return reason
    if torch.version.cuda is None:
        return "this torch was built without CUDA, so no tensor of its is on a GPU"
    return "" if torch.cuda.is_available() else "torch sees no GPU here"


def triton_interprets() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _triton_missing_reason() -> str:
    # Neither imports Triton nor creates a context on a device.
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if triton_interprets() or torch.cuda.is_available() or torch.xpu.is_available():
        return ""
    return "torch sees no GPU here (TRITON_INTERPRET=1 would interpret the kernels on the CPU)"


@functools.cache
def _triton_refuses(device_type: str, index: int | None) -> str:
    """Why Triton kernels do not run on tensors of a device, or an empty string where they do."""
    if device_type == "cpu":
        return "" if triton_interprets() else "it runs on GPU tensors, and these are on cpu"
    if device_type not in _TRITON_DEVICES:
        return f"it runs on GPU tensors, and these are on {device_type}"
    if triton_interprets():
        return "TRITON_INTERPRET=1 interprets the kernels on CPU tensors only"
    if device_type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < _LEAST_CAPABILITY:
            return "it needs compute capability 8.0, and the device has {}.{}".format(*capability)
    return ""


@functools.cache
def _cuda_refuses(device_type: str, index: int | None) -> str:
    """Why the CUDA kernels do not run on tensors of a device, or an empty string where they do."""
    wanted = "cpu" if native.cuda_is_emulated() else "cuda"
    if device_type != wanted or torch.version.hip is not None:
        kind = "NVIDIA GPU" if wanted == "cuda" else "CPU"
        return f"it runs on {kind} tensors, and these are on {device_type}"
    if wanted == "cpu":
        return ""
    number = torch.cuda.current_device() if index is None else index
    why = native.cuda().refusal(number)
    return f"its kernels do not load on device {number}: {why}" if why else ""


def runs_cuda_kernels(device: torch.device) -> bool:
    """Whether the CUDA kernels are there and run on tensors of this device.

    On CPU tensors that is asked of the emulation in tests, and only where it is asked for by name.
    """
    if device == _CPU and requested() != "cuda":
        return False
    return not missing_reason("cuda") and not _cuda_refuses(device.type, device.index)


def runs_triton_kernels(device: torch.device) -> bool:
    """Whether Triton is there and runs on tensors of this device.

    On CPU tensors that is asked of the interpreter, and only where it is asked for by name.
    """
    if device == _CPU and requested() != "triton":
        return False
    return _triton_runs(device.type, device.index)


@functools.cache  # asked at every product: looking for a module that is not imported takes long
def _triton_runs(device_type: str, index: int | None) -> bool:
    return not missing_reason("triton") and not _triton_refuses(device_type, index)


def select(device: torch.device, *, has_cuda: bool = False) -> str:
    """The back end that runs an operator on tensors of this device.

    Args:
        device: of the tensors.
        has_cuda: whether the operator has CUDA kernels, which ``"auto"`` then takes first.

    Raises:
        RuntimeError: if the back end asked for is missing here or does not run on the device.
    """
    if device == _CPU:  # reading a device's type takes as long as all the rest
        return _select(_requested, "cpu", None, has_cuda)
    return _select(_requested, device.type, device.index, has_cuda)


def _select(asked: str | None, device_type: str, index: int | None, has_cuda: bool) -> str:
    choice = asked or _environment()
    if choice == "auto":
        if device_type == "cpu":
            return "reference" if native.cpu_missing_reason() else "cpu"
        if has_cuda and not missing_reason("cuda") and not _cuda_refuses(device_type, index):
            return "cuda"
        if missing_reason("triton") or _triton_refuses(device_type, index):
            return "reference"
        return "triton"
    reason = missing_reason(choice)
    if not reason and choice == "triton":
        reason = _triton_refuses(device_type, index)
    if not reason and choice == "cuda":
        reason = _cuda_refuses(device_type, index)
    if not reason and choice == "cpu" and device_type != "cpu":
        reason = f"it runs on CPU tensors, and these are on {device_type}"
    if reason:
        raise RuntimeError(f"the {choice} back end was asked for and cannot run: {reason}")
    return choice


# What torch.compiler.assume_constant_result does, without importing torch._dynamo: the compiler
# calls this while tracing instead of tracing through the loading of a module.
_select._dynamo_marked_constant = True  # type: ignore[attr-defined]
