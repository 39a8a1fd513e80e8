"""Measures the rates that :mod:`sparsekern.ops.masked.cuda_choice` models times with, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..ops.masked import cuda_choice, cuda_unstructured
from ..ops.masked.cuda_rates import DeviceRates
from ..ops.masked.pattern import SparsityPattern

# The mean time on the device of a call that is made so many times, in seconds.
SecondsOf: TypeAlias = Callable[[Callable[[], object], int], float]
_REPEATS = 20
_SIZE, _BATCH, _SPARSITY = 4096, 256, 0.95


@torch.no_grad()
def measure(
    device: torch.device, say: Callable[[str], None], seconds_of: SecondsOf, size: int = _SIZE
) -> DeviceRates:
    """The rates of a GPU.

    Args:
        device: the GPU.
        say: told what was found.
        seconds_of: times calls.
        size: features of the products on both sides.
    """

    def spent(call: Callable[[], object]) -> float:
        call()  # what is set up once is not counted
        return 1e9 * seconds_of(call, _REPEATS)

    def random(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(rows, columns, device=device).to(dtype)

    small = torch.zeros(1, device=device)
    launch = spent(lambda: small.add_(1))
    source = random(8 * size, size)
    target = torch.empty_like(source)
    memory = 2 * source.numel() * source.element_size() / spent(lambda: target.copy_(source))

    def dense(dtype: torch.dtype) -> float:
        a, b = random(size, size, dtype), random(size, size, dtype)
        return 2 * size**3 / spent(lambda: a @ b)

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        float32 = dense(torch.float32)
        torch.set_float32_matmul_precision("high")
        tf32 = dense(torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)

    weight = random(size, size)
    pattern = SparsityPattern(torch.rand(size, size, device=device) >= _SPARSITY)
    x = cuda_unstructured.feature_major(random(_BATCH, size))
    values = cuda_unstructured.gather(weight, pattern.tensors)
    sizes = cuda_choice.Sizes(_BATCH, size, size, pattern.nnz, torch.float32)
    read = sizes.lanes * pattern.nnz
    product = spent(lambda: cuda_unstructured.product(values, weight, x, pattern.tensors))
    out = torch.zeros_like(weight)
    sampling = spent(lambda: cuda_unstructured.sampled(x, x, pattern.tensors, out, dense=True))
    found = DeviceRates(
        memory=memory,
        cache=read / product,
        sampled=2 * read / sampling,
        float32=float32,
        tf32=tf32,
        half=dense(torch.bfloat16),
        float64=dense(torch.float64),
        launch=launch,
    )
    say(", ".join(f"{name} {number:.3g}" for name, number in vars(found).items()))
    return found
