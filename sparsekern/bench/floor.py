"""The floor: how fast the machine could be, measured in the same run as everything else.

Operations are divided by the rate of one large ``torch.mm`` of the run's dtype, bytes by the
bandwidth of one large copy (read plus written bytes over time); the larger time is the floor.
Where torch.mm runs below what the cores can do, kernels of our own may go under this floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .case import Cost
from .cuda_timing import CudaTimer
from .timing import once, summarise


@dataclass(frozen=True)
class Floor:
    """Measured rates of the machine.

    Attributes:
        flops: operations per second of a large torch.mm.
        bandwidth: bytes per second of a large copy, reading and writing counted.
    """

    flops: float
    bandwidth: float

    def seconds(self, cost: Cost, element: int) -> tuple[float, str]:
        """The least time of a case, and what limits it: "operations" or "bytes"."""
        compute, memory = cost.operations / self.flops, cost.bytes(element) / self.bandwidth
        return (compute, "operations") if compute >= memory else (memory, "bytes")


def measure(dtype: torch.dtype, quick: bool, device: str = "cpu") -> Floor:
    """Measures the matrix rate of a dtype and the copy bandwidth, at the current thread count.

    Values of 16 bits can be widened and multiplied in float32, so float32's rate counts where
    torch's own product of that dtype is slower.
    """
    size, length, repeats = (1536, 1 << 24, 3) if quick else (4096, 1 << 27, 7)
    if device == "cuda":
        size, length = 8192, 1 << 28
    seconds = _seconds(device, repeats)
    rate = 0.0
    if dtype.itemsize < 4:
        rate = _matrix_rate(torch.float32, size, device, seconds)
    # Far below it, the large product would take minutes.
    if rate < 4 * _matrix_rate(dtype, 512, device, seconds):
        rate = max(rate, _matrix_rate(dtype, size, device, seconds))
    source, target = torch.ones(length, device=device), torch.empty(length, device=device)
    target.copy_(source)
    copied = seconds(lambda: target.copy_(source))
    return Floor(flops=rate, bandwidth=2 * source.element_size() * length / copied)


def _seconds(device: str, repeats: int) -> Callable[[Callable[[], object]], float]:
    """The median time of a call on a device."""
    if device == "cuda":
        timer = CudaTimer()
        return lambda call: (
            summarise([timer.device_seconds(call, 1) for _ in range(repeats)]).median
        )
    return lambda call: summarise([once(call) for _ in range(repeats)]).median


def _matrix_rate(
    dtype: torch.dtype,
    size: int,
    device: str,
    seconds: Callable[[Callable[[], object]], float],
) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty(size, size, dtype=dtype, device=device)
    torch.mm(a, b, out=product)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=product))
