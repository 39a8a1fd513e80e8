"""Grids of launches, and what a plan says of each; without Triton or torch."""

from __future__ import annotations

from dataclasses import dataclass


def next_power_of_2(value: int) -> int:
    """The least power of two that is at least ``value``."""
    return 1 << max(0, value - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: its grid and the bytes it must move, each element once.

    Attributes:
        kernel: its name.
        grid: programs.
        read: bytes from memory.
        written: bytes to memory.
        again: bytes that further programs ask for, neighbours in the launch, and are to find in the
            L2 cache.
    """

    kernel: str
    grid: tuple[int, ...]
    read: int = 0
    written: int = 0
    again: int = 0
