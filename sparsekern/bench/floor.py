"""The floor: how fast the machine could be, measured in the same run as everything else.

Operations are divided by the rate of one large ``torch.mm`` of the run's dtype, bytes by the
bandwidth of one large copy (read plus written bytes over time); the larger time is the floor.
Where torch.mm runs below what the cores can do, kernels of our own may go under this floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .case import Cost
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


def measure(dtype: torch.dtype, quick: bool) -> Floor:
    """Measures the matrix rate of a dtype and the copy bandwidth, at the current thread count.

    Values of 16 bits can be widened and multiplied in float32, so float32's rate counts where
    torch's own product of that dtype is slower.
    """
    size, length, repeats = (1536, 1 << 24, 3) if quick else (4096, 1 << 27, 7)
    rate = 0.0
    if dtype.itemsize < 4:
        rate = _matrix_rate(torch.float32, size, repeats)
    if rate < 4 * _matrix_rate(dtype, 512, 3):  # far below it, the large product would take minutes
        rate = max(rate, _matrix_rate(dtype, size, repeats))
    source, target = torch.ones(length), torch.empty(length)
    target.copy_(source)
    copy = summarise([once(lambda: target.copy_(source)) for _ in range(repeats)])
    return Floor(flops=rate, bandwidth=2 * 4 * length / copy.median)


def _matrix_rate(dtype: torch.dtype, size: int, repeats: int) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    product = torch.empty(size, size, dtype=dtype)
    torch.mm(a, b, out=product)
    taken = summarise([once(lambda: torch.mm(a, b, out=product)) for _ in range(repeats)])
    return 2 * size**3 / taken.median
