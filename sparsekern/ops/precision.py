"""In which precision operators compute, whatever their inputs are stored in."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_dtype(x: Tensor) -> torch.dtype:
    """What long sums are taken in: float64, except where a device has none."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Autocast off on the device of x: an operator's precision is that of its inputs."""
    kind = "cpu" if x.is_cpu else x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
