"""Measures the rates that :mod:`sparsekern.ops.masked.cuda_choice` models times with, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.masked import bitmask, compressed, cuda_choice, cuda_unstructured
from ..ops.masked.cuda_rates import DeviceRates
from ..ops.masked.pattern import SparsityPattern

# The mean time on the device of a call that is made so many times, in seconds.
SecondsOf: TypeAlias = Callable[[Callable[[], object], int], float]
_REPEATS = 20
_SIZE, _BATCH, _SPARSITY = 4096, 256, 0.95
# Of a bitmask: rows over columns, so that a launch is little of the time, and a sparsity at which
# unpacking takes longer than reading.
_TALL, _FEW_KEPT = 4, 0.98
_BLOCKS_APART = 4  # in rows and in columns of blocks


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
    here = _Here(device, seconds_of, size)
    small = torch.zeros(1, device=device)
    source = here.random(8 * size)
    target = torch.empty_like(source)
    memory = 2 * source.nbytes / here.spent(lambda: target.copy_(source))
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        float32 = here.dense(torch.float32)
        torch.set_float32_matmul_precision("high")
        tf32 = here.dense(torch.float32)
    finally:
        torch.set_float32_matmul_precision(precision)
    half = here.dense(torch.bfloat16)
    cache, sampled = _unstructured(here)
    instructions, unpacked = _bitmask(here)
    known = cuda_choice.machine(device)[0]  # kept of forms that torch does not multiply here
    found = DeviceRates(
        memory=memory,
        cache=cache,
        sampled=sampled,
        instructions=instructions,
        unpacked=unpacked,
        float32=float32,
        tf32=tf32,
        half=half,
        float64=here.dense(torch.float64),
        semi_structured=_semi_structured(here) or known.semi_structured,
        blocks64=_blocks(here, 64) / half or known.blocks64,
        blocks32=_blocks(here, 32) / half or known.blocks32,
        blocks16=_blocks(here, 16) / half or known.blocks16,
        launch=here.spent(lambda: small.add_(1)),
    )
    say(", ".join(f"{name} {number:.3g}" for name, number in found._asdict().items()))
    return found


class _Here:
    """A device, its clock, and the size of what is measured."""

    def __init__(self, device: torch.device, seconds_of: SecondsOf, size: int) -> None:
        self.device, self.size, self._seconds_of = device, size, seconds_of

    def spent(self, call: Callable[[], object]) -> float:
        """Nanoseconds of a call."""
        call()  # what is set up once is not counted
        return 1e9 * self._seconds_of(call, _REPEATS)

    def random(self, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Features: ``(rows, size)``."""
        return torch.randn(rows, self.size, device=self.device).to(dtype)

    def kept(self, rows: int, sparsity: float) -> Tensor:
        """A mask: ``(rows, size)``."""
        return torch.rand(rows, self.size, device=self.device) >= sparsity

    def dense(self, dtype: torch.dtype) -> float:
        """Operations of torch's product per nanosecond."""
        a, b = self.random(self.size, dtype), self.random(self.size, dtype)
        return 2 * self.size**3 / self.spent(lambda: a @ b)


def _unstructured(here: _Here) -> tuple[float, float]:
    """Bytes of a batch that the sparse and the sampled product read per nanosecond."""
    weight = here.random(here.size)
    pattern = SparsityPattern(here.kept(here.size, _SPARSITY))
    x = cuda_unstructured.feature_major(here.random(_BATCH))
    values = cuda_unstructured.gather(weight, pattern.tensors)
    sizes = cuda_choice.Sizes(_BATCH, here.size, here.size, pattern.nnz, torch.float32)
    read = sizes.lanes * pattern.nnz
    product = here.spent(lambda: cuda_unstructured.product(values, weight, x, pattern.tensors))
    out = torch.zeros_like(weight)
    sampling = here.spent(lambda: cuda_unstructured.sampled(x, x, pattern.tensors, out, dense=True))
    return read / product, 2 * read / sampling


def _bitmask(here: _Here) -> tuple[float, float]:
    """Instructions of the product by kept weights, and weights unpacked, per nanosecond."""
    weight = here.random(_TALL * here.size, torch.bfloat16)

    def product(batch: int, sparsity: float) -> tuple[cuda_choice.Sizes, float]:
        mask = here.kept(weight.shape[0], sparsity)
        nnz = int(mask.sum())
        packed, x = bitmask.pack(mask, weight, nnz, kernels=True), here.random(batch, weight.dtype)
        time = here.spent(lambda: bitmask.linear(x, packed, None, tensor_cores=batch > 1))
        return cuda_choice.Sizes(batch, len(weight), here.size, nnz, weight.dtype), time

    walked, walking = product(1, _SPARSITY)
    unpacked, unpacking = product(cuda_choice.LARGEST_BATCH, _FEW_KEPT)
    return cuda_choice.walk_instructions(walked) / walking, unpacked.weights / unpacking


def _semi_structured(here: _Here) -> float:
    """Operations of torch's 2:4 product per nanosecond, zeros counted; 0 without one."""
    mask = torch.arange(here.size, device=here.device) % 4 < 2
    weight = torch.where(mask, here.random(here.size, torch.bfloat16), 0)
    return _product(here, compressed.semi_structured(weight), here.size**2)


def _blocks(here: _Here, side: int) -> float:
    """Operations of torch's product with blocks per nanosecond; 0 without one."""
    place = torch.arange(here.size // side, device=here.device)
    kept = (place[:, None] + place) % _BLOCKS_APART == 0
    mask = kept.repeat_interleave(side, 0).repeat_interleave(side, 1)
    weight = torch.where(mask, here.random(here.size, torch.bfloat16), 0)
    return _product(here, compressed.blocks(weight, side), int(mask.sum()))


def _product(here: _Here, weight: Tensor | None, multiplied: int) -> float:
    if weight is None:
        return 0.0
    x = here.random(here.size, torch.bfloat16)
    return 2 * here.size * multiplied / here.spent(lambda: F.linear(x, weight))
