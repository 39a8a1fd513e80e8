"""The rates of GPUs that the choice of algorithm is made from: shipped ones, or measured ones.

**The shipped rates are not measured with these kernels.** ``memory`` and the dense rates are about
what torch reaches on large tensors where somebody has said so (H200), and else three quarters of
what the vendor's data sheet gives; ``instructions`` is from data sheets too, and ``unpacked`` is
that over the instructions of the kernel's loop; the rest are guesses. ``sparsekern tune --device
cuda --masked`` measures all of them on the GPU at hand.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import rates as files


class DeviceRates(NamedTuple):
    """Of one GPU, each per nanosecond but for the shares and the last.

    Attributes:
        memory: bytes moved, read and written ones counted.
        cache: bytes of a batch that the sparse product reads, wherever they come from: mostly the
            second-level cache.
        sampled: bytes of a batch that the sampled product reads, the same.
        instructions: of a warp, in the product with a bitmask by kept weights.
        unpacked: weights, kept or not, that the product with a bitmask brings to the tensor cores.
        float32: operations of torch's product in IEEE float32.
        tf32: the same with float32 inputs where torch may use TF32.
        half: in bfloat16 and float16.
        float64: in float64.
        semi_structured: the same of torch's product with a 2:4 weight, zeros counted.
        blocks64: the share of the dense rate at which torch multiplies blocks of 64 by 64.
        blocks32: of 32 by 32.
        blocks16: of 16 by 16.
        launch: nanoseconds that a launch costs, on the host or on the device.
    """

    memory: float
    cache: float
    sampled: float
    instructions: float
    unpacked: float
    float32: float
    tf32: float
    half: float
    float64: float
    semi_structured: float
    blocks64: float
    blocks32: float
    blocks16: float
    launch: float

    def dense(self, dtype: torch.dtype, tf32: bool) -> float:
        """Of torch's product in a dtype; ``tf32`` is whether torch may use it."""
        if dtype == torch.float32:
            return self.tf32 if tf32 else self.float32
        return self.float64 if dtype == torch.float64 else self.half

    def blocks(self, side: int) -> float:
        """The share of that at which blocks are multiplied; ``side`` is 64, 32 or 16."""
        return {64: self.blocks64, 32: self.blocks32, 16: self.blocks16}[side]


# Smaller blocks fill the tensor cores less.
_BLOCKS = (0.5, 0.35, 0.2)
# By compute capability; others take the nearest below.
DEFAULTS = {
    # A100
    (8, 0): DeviceRates(
        *(1500, 3000, 2400, 600, 3800, 14500, 115000, 230000, 14500, 300000), *_BLOCKS, 4000
    ),
    # A10, RTX 30
    (8, 6): DeviceRates(
        *(700, 1800, 1400, 500, 3100, 25000, 40000, 80000, 420, 104000), *_BLOCKS, 4000
    ),
    # L40, RTX 40
    (8, 9): DeviceRates(
        *(750, 2500, 2000, 1300, 8200, 60000, 65000, 130000, 1000, 170000), *_BLOCKS, 4000
    ),
    # H100, H200
    (9, 0): DeviceRates(
        *(4300, 5000, 4000, 950, 6000, 50000, 370000, 790000, 50000, 1030000), *_BLOCKS, 4000
    ),
    # B200
    (10, 0): DeviceRates(
        *(6000, 7000, 5600, 1100, 6900, 58000, 840000, 1680000, 29000, 2180000), *_BLOCKS, 4000
    ),
    # RTX 50
    (12, 0): DeviceRates(
        *(1350, 4000, 3200, 1600, 10000, 78000, 80000, 157000, 1200, 204000), *_BLOCKS, 4000
    ),
}


def shipped(capability: tuple[int, int]) -> DeviceRates:
    """The rates of the nearest class of GPUs at or below a compute capability, or of the oldest."""
    below = [known for known in DEFAULTS if known <= capability]
    return DEFAULTS[max(below) if below else min(DEFAULTS)]


@functools.cache
def rates(name: str, capability: tuple[int, int]) -> DeviceRates:
    """The rates to choose by: tuned ones where there are any, else the shipped ones."""
    return tuned(name) or shipped(capability)


def tuned(name: str) -> DeviceRates | None:
    """What ``sparsekern tune`` found on a GPU of this name, if it has run.

    See :func:`~sparsekern.ops.masked.rates.cached` for files that cannot be read.
    """
    return files.cached(_key(name), _from_json)


def save(found: DeviceRates, name: str) -> Path:
    """Writes the rates of a GPU to the cache file, beside those of processors and other GPUs.

    Returns:
        Where they are.

    Raises:
        OSError: if the file cannot be written.
    """
    path = files.write_entry(_key(name), found._asdict())
    rates.cache_clear()
    return path


def _key(name: str) -> str:
    return f"{name}, cuda"


def _from_json(entry: dict[str, Any]) -> DeviceRates:
    found = DeviceRates(**entry)
    if not all(isinstance(number, (int, float)) and number > 0 for number in found):
        raise ValueError(f"the rates of a GPU must be numbers above 0, got {found}")
    return found
