"""The correctness gate: no time counts for a result that is not right.

A case names its measure of error: one of the functions here, or its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def distance(
    measure: Callable[[Sequence[Tensor], Sequence[Tensor]], float],
    outputs: Sequence[Tensor],
    expected: Sequence[Tensor],
) -> float:
    """How far outputs are from the oracle's; infinite where one is NaN or has another shape."""
    if [tuple(x.shape) for x in outputs] != [tuple(x.shape) for x in expected]:
        return float("inf")
    value = measure(outputs, expected)
    return value if value == value else float("inf")


def largest_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest absolute difference: for what has a scale of its own, as CKA has [-1, 1]."""
    pairs = zip(outputs, expected, strict=True)
    return _largest([_worst((x.double() - y.double()).abs()) for x, y in pairs])


def relative_distance(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The Euclidean distance over the Euclidean length, over all outputs together."""
    pairs = list(zip(outputs, expected, strict=True))
    squares = sum(float((x.double() - y.double()).square().sum()) for x, y in pairs)
    length = sum(float(y.double().square().sum()) for _, y in pairs)
    return float((squares / length) ** 0.5) if length else float(squares > 0)


def value_and_gradient(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The larger of the relative distance of the first output and of all others together."""
    first = relative_distance(outputs[:1], expected[:1])
    return _largest([first, relative_distance(outputs[1:], expected[1:])])


def mismatches(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The share of entries that differ at all: for masks and selections."""
    pairs = list(zip(outputs, expected, strict=True))
    different = sum(int((x != y).sum()) for x, y in pairs)
    return different / max(1, sum(y.numel() for _, y in pairs))


def _worst(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _largest(values: Sequence[float]) -> float:
    # max() may drop a NaN.
    return float("nan") if any(value != value for value in values) else max(values, default=0.0)
