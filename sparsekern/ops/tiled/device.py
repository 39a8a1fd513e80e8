"""The device that kernels run on: its class, its size, and what its matrix units can do."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

# Programs of the interpreter run one after another: enough of them to have several.
_INTERPRETED_PROCESSORS = 2


@functools.cache
def device_class(device: torch.device) -> str:
    """What launch configurations are chosen by, such as ``"cuda:9.0"``, ``"hip"``, ``"xpu"``."""
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda:{major}.{minor}"
    if device.type == "cuda":
        return "hip"
    return device.type


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors (compute units, Xe cores) of the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).gpu_subslice_count)
    return _INTERPRETED_PROCESSORS


def guard(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the device of x the current one: Triton launches on that one's current stream."""
    if x.device.type == "cuda":
        return torch.cuda.device(x.device)
    if x.device.type == "xpu":
        return torch.xpu.device(x.device)
    return contextlib.nullcontext()


def matrix_operands(dtype: torch.dtype, device: str, raw: bool) -> str:
    """What products of features are taken in: "ieee", "tf32x3", "tf32", "bf16", "fp16" or "fp64".

    float32 features follow ``torch.get_float32_matmul_precision()``. 16-bit features are rounded
    to their own precision once their means are off; float16 by way of tf32, which has as many
    digits and a range that centred features cannot leave.

    Args:
        dtype: of the features.
        device: its class.
        raw: whether features are multiplied as they are, not centred.
    """
    if dtype == torch.float64:
        return "fp64"
    if device in ("cpu", "hip"):
        # The interpreter multiplies the bits of bfloat16; AMD's matrix units take float32 as it is.
        if device == "hip" and dtype == torch.bfloat16:
            return "bf16"
        return "ieee"
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype == torch.float16:
        return "fp16" if raw else "tf32"
    precision = torch.get_float32_matmul_precision()
    return {"highest": "ieee", "high": "tf32x3"}.get(precision, "tf32")
