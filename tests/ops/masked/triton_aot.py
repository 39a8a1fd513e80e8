"""Compiles the masked products' kernels for GPUs that are not here; see ``tests/ops/aot.py``."""

from __future__ import annotations

import os
from collections.abc import Sequence

os.environ.pop("TRITON_INTERPRET", None)

import torch

from sparsekern.ops.masked.triton import calls, plan
from tests.ops import aot

# One batch for each tile; 16 divides all sizes but for the odd layer's.
BATCHES = (16, 32, 64, 128)
SIDE = 4096


def record(capability: int) -> aot.Recorder:
    """What dense products launch on this kind of GPU, with every configuration."""
    aot.pretend(capability)
    recorder = aot.Recorder()
    calls.launch = recorder
    calls.configuration = plan.configuration = recorder.configuration
    recorder.prefixes = ("multiply",)
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        layer(torch.float32, torch.float32)
    torch.set_float32_matmul_precision("highest")
    layer(torch.bfloat16, torch.bfloat16)
    layer(torch.bfloat16, torch.float32, BATCHES[:1])  # as under autocast
    layer(torch.float16, torch.float16, BATCHES[-1:])
    recorder.prefixes = ("",)
    odd = torch.empty(20000, 250)
    calls.weight_grad(odd, odd, None, torch.float32)  # shared by programs, without a mask
    calls.forward(odd[:37], torch.empty(250, 250), None, torch.empty(250, 250).bool())
    x = torch.empty(SIDE)
    calls.step_(x, x, x, x.bool(), x, x, 0.9, 0.1)
    return recorder


def layer(dtype: torch.dtype, weight_dtype: torch.dtype, batches: Sequence[int] = BATCHES) -> None:
    """Forward passes, and the gradients of the last."""
    weight, mask = torch.empty(SIDE, SIDE, dtype=weight_dtype), torch.empty(SIDE, SIDE).bool()
    for batch in batches:
        x = torch.empty(batch, SIDE, dtype=dtype)
        calls.forward(x, weight, torch.empty(SIDE, dtype=dtype), mask)
    calls.input_grad(x, weight, mask)
    calls.weight_grad(x, x, mask, weight_dtype)


if __name__ == "__main__":
    aot.main(record)
