"""Which back end runs an operator on a device, and why not another."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

from . import native

BACKENDS = ("reference", "cpu", "triton", "cuda")
_CHOICES = ("auto", *BACKENDS)
_NOT_YET = "this version has no {} kernels; GPU tensors run on the plain-PyTorch reference"


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
    if name in ("triton", "cuda"):
        return _NOT_YET.format(name)
    return ""


def select(device: torch.device) -> str:
    """The back end that runs an operator on tensors of this device.

    Raises:
        RuntimeError: if the back end asked for is missing here or does not run on the device.
    """
    return _select(_requested, device.type)


def _select(asked: str | None, device_type: str) -> str:
    choice = asked or _environment()
    if choice == "auto":
        return "cpu" if device_type == "cpu" and not native.cpu_missing_reason() else "reference"
    reason = missing_reason(choice)
    if not reason and choice == "cpu" and device_type != "cpu":
        reason = f"it runs on CPU tensors, and these are on {device_type}"
    if reason:
        raise RuntimeError(f"the {choice} back end was asked for and cannot run: {reason}")
    return choice


# What torch.compiler.assume_constant_result does, without importing torch._dynamo: the compiler
# calls this while tracing instead of tracing through the loading of a module.
_select._dynamo_marked_constant = True  # type: ignore[attr-defined]
