"""How a sparsity is shared among layers: Erdős–Rényi-kernel and uniform densities.

The first after Mocanu et al. 2018 and Evci et al. 2020: the weights a layer keeps are in
proportion to the sum of its dimensions, so that small layers stay denser than large ones.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence


def check_sparsity(sparsity: float) -> None:
    """Raises a ValueError unless it is a number in ``[0, 1)``."""
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity!r}")


def kept_in_all(total: int, sparsity: float) -> int:
    """How many of ``total`` weights a sparsity leaves: ``total - floor(sparsity · total)``."""
    return total - math.floor(sparsity * total)


def erk_counts(shapes: Sequence[Sequence[int]], sparsity: float) -> list[int]:
    """How many weights each layer keeps.

    Args:
        shapes: the shape of each weight: ``(out, in, kh, kw)`` or ``(out, in)``.
        sparsity: the share of zeros over all layers, in ``[0, 1)``.

    Returns:
        One count per layer, in proportion to the sum of the layer's dimensions; a layer that
        would keep more than it has stays dense. The counts add up to ``kept_in_all`` exactly.

    Raises:
        ValueError: for a sparsity outside ``[0, 1)``.
    """
    check_sparsity(sparsity)
    return erk_shares(shapes, kept_in_all(sum(math.prod(shape) for shape in shapes), sparsity))


def erk_shares(shapes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """As :func:`erk_counts`, for a number of weights to keep in all."""
    sizes = [math.prod(shape) for shape in shapes]
    if budget >= sum(sizes):
        return sizes
    dense: set[int] = set()
    while True:
        sparse = [layer for layer in range(len(sizes)) if layer not in dense]
        left = budget - sum(sizes[layer] for layer in dense)
        weight = sum(sum(shapes[layer]) for layer in sparse)
        # Whole numbers throughout: a share is divmod(left · dimensions, weight), never rounded.
        shares = {layer: divmod(left * sum(shapes[layer]), weight) for layer in sparse}
        overfull = {layer for layer, share in shares.items() if share > (sizes[layer], 0)}
        if not overfull:
            break
        dense |= overfull
    counts = list(sizes)
    for layer, (whole, _) in shares.items():
        counts[layer] = whole
    # The largest remainders get the weights that rounding down left over.
    by_remainder = sorted(shares, key=lambda layer: shares[layer][1], reverse=True)
    for layer in by_remainder[: budget - sum(counts)]:
        counts[layer] += 1
    return counts


def uniform_shares(sizes: Sequence[int], budget: int) -> list[int]:
    """The same density for every layer; the counts add up to the budget exactly.

    What rounding down leaves goes to the largest remainders, of equal ones to the first.
    """
    return _proportional(sizes, budget)


def fit_counts(counts: Sequence[int], lower: Sequence[int], upper: Sequence[int]) -> list[int]:
    """Moves counts into bounds and leaves their sum as it is.

    What a bound takes from some layers, or asks for them, the others share in proportion to the
    room that they have.

    Args:
        counts: one for each layer.
        lower: the least for each.
        upper: the most for each, not below ``lower``.

    Raises:
        ValueError: if no counts inside of the bounds have that sum.
    """
    total = sum(counts)
    if not sum(lower) <= total <= sum(upper):
        raise ValueError(f"counts add up to {total}: expected {sum(lower)} to {sum(upper)}")
    bounds = list(zip(lower, upper, strict=True))
    fitted = [min(max(c, low), high) for c, (low, high) in zip(counts, bounds, strict=True)]
    missing = total - sum(fitted)
    sign = 1 if missing >= 0 else -1
    room = [
        high - now if missing > 0 else now - low
        for now, (low, high) in zip(fitted, bounds, strict=True)
    ]
    changes = _proportional(room, abs(missing))
    return [now + sign * change for now, change in zip(fitted, changes, strict=True)]


def _proportional(sizes: Sequence[int], budget: int) -> list[int]:
    total = sum(sizes)
    if budget == 0 or total == 0:
        return [0] * len(sizes)
    shares = [divmod(budget * size, total) for size in sizes]
    counts = [whole for whole, _ in shares]
    order = sorted(range(len(sizes)), key=lambda layer: shares[layer][1], reverse=True)
    for layer in order[: budget - sum(counts)]:
        counts[layer] += 1
    return counts
