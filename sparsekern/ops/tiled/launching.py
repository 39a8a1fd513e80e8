"""Launching Triton kernels, and the types that they are told of. Imports Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from .configurations import Configuration

TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
# What products are taken in: the type of their operands and the precision of Triton's dot.
OPERANDS = {
    "ieee": (tl.float32, "ieee"),
    "tf32x3": (tl.float32, "tf32x3"),
    "tf32": (tl.float32, "tf32"),
    "bf16": (tl.bfloat16, "ieee"),
    "fp16": (tl.float16, "ieee"),
    "fp64": (tl.float64, "ieee"),
}


def launch(
    kernel: Any, grid: tuple[int, ...], config: Configuration, *args: Any, **meta: Any
) -> None:
    """Launches a kernel on the current device's current stream."""
    # Whether products and sums may fuse is said here, for the default differs between versions.
    kernel[grid](
        *args, **meta, num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True
    )
