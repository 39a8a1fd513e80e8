"""Which algorithm a masked product takes on a GPU: a pure function of sizes, forms and rates.

As on the CPU (:mod:`.choice`), times are modelled as sums of counts over rates, and the shortest
one decides, among the forms that there are of the weight. Counts are of what the kernels do, rates
of the GPU. None of it has been measured on hardware: :mod:`.cuda_rates` says where its numbers are
from. Every algorithm gives the same results, so a wrong choice costs time only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ... import native
from . import cuda_rates
from .choice import PARTS
from .cuda_rates import DeviceRates
from .triton import choice as fused_choice

# Of a weight and a pattern, as in training; compressed weights have others.
FORMS = ("unstructured", "dense")

_SECTOR = 32  # bytes that the device reads for one kept weight
_ENTRY = 12  # bytes of an index and a value, and of the place of a value in the other order
_VECTOR = 16  # bytes of the batch that a lane has at least
_SPARSE_LAUNCHES = 4  # turn x, gather, multiply, turn the result

# Of bitmask-compressed weights, by which batches are multiplied up to this one.
LARGEST_BATCH = 16
_FEW = 4  # rows of x that one launch multiplies without tensor cores
# Instructions of a warp in that kernel's inner loop: for a kept weight of the slowest lane, for
# each row of x with it, and for 32 weights to find where a lane's values begin.
_WALK, _WALK_PER_ROW, _SCAN = 8.0, 2.5, 0.6
# What these models leave out (waiting for memory) is not to make a product slower than dense.
_CAUTION = 1.25


class Sizes(NamedTuple):
    """Of one masked product.

    Attributes:
        batch: rows of x.
        rows: output features.
        columns: input features.
        nnz: kept weights, about.
        dtype: of x.
        tf32: whether torch may use TF32 for float32.
        masked: whether the dense weight is there with its zeros, so that none has to be made.
        block_side: of the blocks that a form ``"blocks"`` has.
        in_blocks: weights in these blocks, kept or not.
        fused: whether dense products may be fused with the mask.
    """

    batch: int
    rows: int
    columns: int
    nnz: int
    dtype: torch.dtype
    tf32: bool = False
    masked: bool = False
    block_side: int = 0
    in_blocks: int = 0
    fused: bool = False

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
    """The modelled time of torch's product, and of a masked copy or result where that is needed.

    Or of a product fused with the mask, where that is faster: :mod:`.triton.choice`.
    """
    operations = 2 * sizes.batch * sizes.weights / rates.dense(sizes.dtype, sizes.tf32)
    moved = (sizes.ends + sizes.weights * sizes.dtype.itemsize) / rates.memory
    time = rates.launch + max(operations, moved)
    if sizes.masked:
        return time
    time += rates.launch + sizes.weights * (1 + 2 * sizes.dtype.itemsize) / rates.memory
    return min(time, _fused(part, *sizes[:3], sizes.dtype, *rates)) if sizes.fused else time


def unstructured_nanoseconds(part: str, sizes: Sizes, rates: DeviceRates) -> float:
    """The modelled time by kept entries, wherever they are."""
    # Each side of the batch is turned: read and written once more.
    time = _SPARSE_LAUNCHES * rates.launch + 3 * sizes.ends / rates.memory
    if part == "weight":
        time += 2 * sizes.lanes * sizes.nnz / rates.sampled
        written = sizes.weights * sizes.dtype.itemsize + 2 * _SECTOR * sizes.nnz
        return time + written / rates.memory
    time += sizes.lanes * sizes.nnz / rates.cache + _ENTRY * sizes.nnz / rates.memory
    kept_lines = min(sizes.weights * sizes.dtype.itemsize, _SECTOR * sizes.nnz)
    return time + kept_lines / rates.memory


def semi_structured_nanoseconds(part: str, sizes: Sizes, rates: DeviceRates) -> float:
    """The modelled time of torch's product with a 2:4 weight."""
    operations = 2 * sizes.batch * sizes.weights / rates.semi_structured
    # Half of the values, and two bits for each of them.
    moved = (sizes.ends + sizes.weights * sizes.dtype.itemsize * 9 / 16) / rates.memory
    return rates.launch + max(operations, moved)


def blocks_nanoseconds(part: str, sizes: Sizes, rates: DeviceRates) -> float:
    """The modelled time of torch's product with the blocks that hold anything."""
    operations = 2 * sizes.batch * sizes.in_blocks / rates.dense(sizes.dtype, sizes.tf32)
    moved = (sizes.ends + sizes.in_blocks * sizes.dtype.itemsize) / rates.memory
    return rates.launch + max(operations, moved) / rates.blocks(sizes.block_side)


def few_nanoseconds(part: str, sizes: Sizes, rates: DeviceRates) -> float:
    """The modelled time of a bitmask whose lanes walk over their kept weights."""
    if not 1 <= sizes.batch <= LARGEST_BATCH:
        return math.inf
    passes = math.ceil(sizes.batch / _FEW)
    walked = walk_instructions(sizes) / rates.instructions
    return rates.launch + _CAUTION * max(passes * _packed_bytes(sizes) / rates.memory, walked)


def panels_nanoseconds(part: str, sizes: Sizes, rates: DeviceRates) -> float:
    """The modelled time of a bitmask unpacked into operands of the tensor cores."""
    if not 1 <= sizes.batch <= LARGEST_BATCH or sizes.dtype == torch.float32:
        return math.inf
    unpacked = sizes.weights / rates.unpacked  # whatever is kept
    return rates.launch + _CAUTION * max(_packed_bytes(sizes) / rates.memory, unpacked)


def walk_instructions(sizes: Sizes) -> float:
    """Instructions of a warp that :func:`few_nanoseconds` counts."""
    density = sizes.nnz / max(1, sizes.weights)
    # A warp walks as long as its fullest lane: 2.5 standard deviations above the mean.
    longest = 32 * density + 2.5 * math.sqrt(32 * density * (1 - density))
    walk = longest * (_WALK + _WALK_PER_ROW * min(sizes.batch, _FEW)) / 32 + _SCAN
    return math.ceil(sizes.batch / _FEW) * sizes.weights / 32 * walk


def _packed_bytes(sizes: Sizes) -> float:
    return sizes.ends + sizes.weights / 8 + sizes.nnz * sizes.dtype.itemsize


# Those that can be chosen, with the form of the weight that each needs, in the order in which
# equals are preferred.
TIMES: dict[str, tuple[str, Callable[[str, Sizes, DeviceRates], float]]] = {
    "semi_structured": ("semi_structured", semi_structured_nanoseconds),
    "few": ("bitmask", few_nanoseconds),
    "panels": ("bitmask", panels_nanoseconds),
    "unstructured": ("unstructured", unstructured_nanoseconds),
    "blocks": ("blocks", blocks_nanoseconds),
    "dense": ("dense", dense_nanoseconds),
}


def algorithm(part: str, sizes: Sizes, rates: DeviceRates, forms: Collection[str] = FORMS) -> str:
    """The fastest algorithm for one part of a masked linear layer.

    Args:
        part: ``"forward"``, ``"input"`` (the gradient with respect to x), or ``"weight"`` (the
            masked gradient with respect to the weight).
        sizes: of the product.
        rates: of the GPU.
        forms: of the weight, some of ``"unstructured"`` (a pattern), ``"dense"``, and for the
            forward pass ``"bitmask"``, ``"semi_structured"`` (2:4) and ``"blocks"``.

    Returns:
        ``"dense"``, ``"unstructured"``, ``"semi_structured"``, ``"blocks"``, or for a bitmask
        ``"few"`` or ``"panels"`` (without and with tensor cores).
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    fastest, shortest = "", math.inf
    for name, (form, nanoseconds) in TIMES.items():  # torch.compile knows no min with a key
        if form in forms:
            time = nanoseconds(part, sizes, rates)
            if not fastest or time < shortest:
                fastest, shortest = name, time
    if not fastest:
        known = sorted({form for form, _ in TIMES.values()})
        raise ValueError(f"forms must hold some of {', '.join(known)}, got {sorted(forms)}")
    return fastest


def here(part: str, x: Tensor, weight: Tensor, nnz: int) -> str:
    """The algorithm for x, a weight and a pattern on their device."""
    rates, tf32 = machine(x.device)
    fused = fused_choice.possible(x.dtype, x.device.type, x.device.index)
    sizes = Sizes(x.shape[0], weight.shape[0], x.shape[1], nnz, x.dtype, tf32, fused=fused)
    return algorithm(part, sizes, rates)


def machine(device: torch.device) -> tuple[DeviceRates, bool]:
    """The rates of a device, and whether torch may use TF32."""
    name, capability, tf32 = _device(device.type, device.index)
    return DeviceRates(*_numbers(name, capability)), tf32


def _device(kind: str, index: int | None) -> tuple[str, tuple[int, int], bool]:
    tf32 = torch.get_float32_matmul_precision() != "highest"
    if kind != "cuda" or native.cuda_is_emulated():
        return "", (0, 0), tf32
    major, minor = torch.cuda.get_device_capability(index)
    return torch.cuda.get_device_name(index), (major, minor), tf32


def _numbers(name: str, capability: tuple[int, int]) -> tuple[float, ...]:
    return tuple(cuda_rates.rates(name, capability))


def _fused(
    part: str, batch: int, rows: int, columns: int, dtype: torch.dtype, *rates: float
) -> float:
    found = DeviceRates(*rates)
    return fused_choice.nanoseconds(part, batch, rows, columns, dtype, found)


# As in choice.py: tracing takes the answers as constants.
_device._dynamo_marked_constant = True  # type: ignore[attr-defined]
_numbers._dynamo_marked_constant = True  # type: ignore[attr-defined]
_fused._dynamo_marked_constant = True  # type: ignore[attr-defined]
