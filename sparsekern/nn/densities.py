"""How a sparsity is shared among layers: Erdős–Rényi-kernel densities.

After Mocanu et al. 2018 and Evci et al. 2020: the weights a layer keeps are in proportion to the
sum of its dimensions, so that small layers stay denser than large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


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
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    sizes = [math.prod(shape) for shape in shapes]
    budget = kept_in_all(sum(sizes), sparsity)
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
