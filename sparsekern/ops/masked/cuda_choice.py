"""Which algorithm a masked product takes on a GPU: a pure function of sizes, dtype and rates.

As on the CPU (:mod:`.choice`), times are modelled as sums of counts over rates, and their ratio
decides. None of it has been measured on hardware: :mod:`.cuda_rates` says where its numbers are
from. Every algorithm gives the same results, so a wrong choice costs time only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import native
from . import cuda_rates
from .choice import PARTS
from .cuda_rates import DeviceRates

_SECTOR = 32  # bytes that the device reads for one kept weight
_ENTRY = 12  # bytes of an index and a value, and of the place of a value in the other order
_VECTOR = 16  # bytes of the batch that a lane has at least
# Launches: turn x, gather, multiply, turn the result; or mask, multiply.
_SPARSE_LAUNCHES, _DENSE_LAUNCHES = 4, 2


@dataclass(frozen=True)
class Sizes:
    """Of one masked product.

    Attributes:
        batch: rows of x.
        rows: output features.
        columns: input features.
        nnz: kept weights, about.
        dtype: of x.
        tf32: whether torch may use TF32 for float32.
    """

    batch: int
    rows: int
    columns: int
    nnz: int
    dtype: torch.dtype
    tf32: bool = False

    @property
    def weights(self) -> int:
        """All of them, kept or not."""
        return self.rows * self.columns

    @property
    def ends(self) -> int:
        """Bytes of the batch on both sides."""
        return self.batch * (self.rows + self.columns) * self.dtype.itemsize

    @property
    def lanes(self) -> int:
        """Bytes of the batch for each kept entry."""
        size = self.batch * self.dtype.itemsize
        return -(-size // _VECTOR) * _VECTOR


def dense_nanoseconds(part: str, sizes: Sizes, rates: DeviceRates) -> float:
    """The modelled time by a masked copy, or a masked result, and torch's product."""
    operations = 2 * sizes.batch * sizes.weights / rates.dense(sizes.dtype, sizes.tf32)
    moved = (sizes.ends + sizes.weights * sizes.dtype.itemsize) / rates.memory
    masking = sizes.weights * (1 + 2 * sizes.dtype.itemsize) / rates.memory
    return _DENSE_LAUNCHES * rates.launch + max(operations, moved) + masking


def unstructured_nanoseconds(part: str, sizes: Sizes, rates: DeviceRates) -> float:
    """The modelled time by kept entries."""
    # Each side of the batch is turned: read and written once more.
    time = _SPARSE_LAUNCHES * rates.launch + 3 * sizes.ends / rates.memory
    if part == "weight":
        time += 2 * sizes.lanes * sizes.nnz / rates.sampled
        written = sizes.weights * sizes.dtype.itemsize + 2 * _SECTOR * sizes.nnz
        return time + written / rates.memory
    time += sizes.lanes * sizes.nnz / rates.cache + _ENTRY * sizes.nnz / rates.memory
    kept_lines = min(sizes.weights * sizes.dtype.itemsize, _SECTOR * sizes.nnz)
    return time + kept_lines / rates.memory


# Those that can be chosen, in the order in which equals are preferred.
TIMES: dict[str, Callable[[str, Sizes, DeviceRates], float]] = {
    "unstructured": unstructured_nanoseconds,
    "dense": dense_nanoseconds,
}


def algorithm(part: str, sizes: Sizes, rates: DeviceRates) -> str:
    """The fastest algorithm for one part of a masked linear layer.

    Args:
        part: ``"forward"``, ``"input"`` (the gradient with respect to x), or ``"weight"`` (the
            masked gradient with respect to the weight).
        sizes: of the product.
        rates: of the GPU.

    Returns:
        A name of :data:`TIMES`.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    return min(TIMES, key=lambda name: TIMES[name](part, sizes, rates))


def here(part: str, x: Tensor, weight: Tensor, nnz: int) -> str:
    """The algorithm for x and a weight on their device."""
    name, capability, tf32 = _device(x.device.type, x.device.index)
    sizes = Sizes(x.shape[0], weight.shape[0], x.shape[1], nnz, x.dtype, tf32)
    return algorithm(part, sizes, DeviceRates(*_numbers(name, capability)))


def _device(kind: str, index: int | None) -> tuple[str, tuple[int, int], bool]:
    tf32 = torch.get_float32_matmul_precision() != "highest"
    if kind != "cuda" or native.cuda_is_emulated():
        return "", (0, 0), tf32
    major, minor = torch.cuda.get_device_capability(index)
    return torch.cuda.get_device_name(index), (major, minor), tf32


def _numbers(name: str, capability: tuple[int, int]) -> tuple[float, ...]:
    found = cuda_rates.rates(name, capability)
    return tuple(getattr(found, field) for field in DeviceRates.__dataclass_fields__)


# As in choice.py: tracing takes the answers as constants.
_device._dynamo_marked_constant = True  # type: ignore[attr-defined]
_numbers._dynamo_marked_constant = True  # type: ignore[attr-defined]
