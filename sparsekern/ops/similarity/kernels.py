"""Kernel functions between samples: the ``kernel=`` argument of every similarity operator."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TypeAlias

_MOST_DEGREE = 1000  # far beyond what any float can hold


def _require_positive(kernel: str, argument: str, value: float) -> None:
    if not _is_number(value) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{kernel}: {argument} must be a positive finite number, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Linear:
    """``k(x, y) = xᵀy``, on column-centred features."""


@dataclass(frozen=True)
class RBF:
    """Gaussian kernel ``k(x, y) = exp(-‖x - y‖² / (2 σ²))``.

    Args:
        fraction: with no ``bandwidth``, ``σ² = fraction² · median``, where the median is taken
            over all n² squared distances, the zero diagonal included (Kornblith et al. 2019).
            The median is a function of the features and the gradient flows through it.
        bandwidth: σ itself, in the units of the features. Overrides ``fraction``.

    Raises:
        ValueError: if ``fraction`` or ``bandwidth`` is not a positive finite number.
    """

    fraction: float = 0.5
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        _require_positive("RBF", "fraction", self.fraction)
        if self.bandwidth is not None:
            _require_positive("RBF", "bandwidth", self.bandwidth)
            _require_positive("RBF", "the square of bandwidth", self.bandwidth * self.bandwidth)


@dataclass(frozen=True)
class Polynomial:
    """``k(x, y) = (xᵀy + c)^degree``, on the features as they are (it is not shift-invariant).

    Args:
        degree: an integer from 1 to 1000.
        c: the additive constant, at least 0 (a negative one gives no positive kernel).

    Raises:
        ValueError: if ``degree`` or ``c`` is outside its range.
    """

    degree: int = 2
    c: float = 1.0

    def __post_init__(self) -> None:
        valid = isinstance(self.degree, int) and not isinstance(self.degree, bool)
        if not valid or not 1 <= self.degree <= _MOST_DEGREE:
            raise ValueError(
                f"Polynomial: degree must be an integer from 1 to {_MOST_DEGREE}, "
                f"got {self.degree!r}"
            )
        if not _is_number(self.c) or not (math.isfinite(self.c) and self.c >= 0):
            raise ValueError(f"Polynomial: c must be a finite number >= 0, got {self.c!r}")


@dataclass(frozen=True)
class Cosine:
    """``k(x, y) = xᵀy / (‖x‖ ‖y‖)``, on the features as they are; 0 where a sample is all zero."""


Kernel: TypeAlias = Linear | RBF | Polynomial | Cosine
KERNEL_TYPES = (Linear, RBF, Polynomial, Cosine)
_NAMED: dict[str, Kernel] = {
    "linear": Linear(),
    "rbf": RBF(),
    "polynomial": Polynomial(),
    "cosine": Cosine(),
}


def resolve_kernel(kernel: str | Kernel) -> Kernel:
    """Returns the kernel object for a name or an object.

    Raises:
        ValueError: if a name is not one of the known ones.
        TypeError: if ``kernel`` is neither a name nor a kernel object.
    """
    if isinstance(kernel, str):
        try:
            return _NAMED[kernel]
        except KeyError:
            known = ", ".join(repr(name) for name in _NAMED)
            raise ValueError(f"kernel must be one of {known}, got {kernel!r}") from None
    if isinstance(kernel, KERNEL_TYPES):
        return kernel
    raise TypeError(
        "kernel must be a name or a sparsekern Linear, RBF, Polynomial or Cosine object, "
        f"got {type(kernel).__name__}"
    )
