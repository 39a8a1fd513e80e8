"""How a similarity call is computed and what it keeps: pure functions of its sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_TILE = 32  # kTile of the compiled core
_SMALL_ROWS = 16  # kSmallRows
_STATS_BYTES = 56  # sizeof(LayerStats)
_ALIGNMENT = 64
_LINEAR = 0

# What a multiplication in feature space costs against one on Gram matrices, from where the two
# forms took equal time (n = 200, 1000, 4000; d = n/4 to 4n/5). Forward: at equal work or a little
# above. With the backward pass: at 0.8 of the work, for its torch.mm does not halve symmetric
# products.
_FORWARD_COST = 1.0
_BACKWARD_COST = 1.25


def feature_space_is_faster(
    n: int, dims: Sequence[int], first: int, kernel: int, dtype: torch.dtype, keep: bool
) -> bool:
    """Whether linear HSIC and CKA are cheaper from d x d products than from n x n Gram matrices.

    Args:
        n: samples.
        dims: features per layer.
        first: the layers before this index are compared with those from it on; 0: all with all.
        kernel: code of the kernel; only the linear one has a feature-space form.
        dtype: of the features; 16-bit ones always take the Gram form, which widens them once.
        keep: whether a backward pass follows.
    """
    if n <= _SMALL_ROWS or kernel != _LINEAR or dtype not in (torch.float32, torch.float64):
        return False
    total = sum(dims)
    own = sum(d * d for d in dims)
    pairs = sum(dims[:first]) * sum(dims[first:]) if first else (total * total - own) // 2
    # Multiply-adds: half of a symmetric product is its mirror.
    gram = n * n * total // 2
    feature = n * (own // 2 + pairs)
    if keep:
        gram += n * n * total
        feature += 2 * n * (own + 2 * pairs)
    return bool((_BACKWARD_COST if keep else _FORWARD_COST) * feature < gram)


def result_shape(first: int, count: int) -> tuple[int, ...]:
    """What a comparison of ``count`` layers returns: a scalar for one pair, else a matrix.

    The scalar is what ``hsic`` and ``cka`` are after: a view of a matrix would cost as much as the
    allocation.
    """
    return () if (first, count) == (1, 2) else (first or count, count - first)


def state_bytes(n: int, dims: Sequence[int], dtype: torch.dtype, in_features: bool) -> int:
    """Bytes that a forward pass keeps for its backward pass; ``State`` in the compiled core."""
    element = 8 if dtype == torch.float64 else 4
    count = len(dims)
    head = _aligned(count * _STATS_BYTES) + _aligned(count * count * 8)
    if in_features:
        return head + _ALIGNMENT  # its last byte: whether feature space was exact enough
    panels = (n + _TILE - 1) // _TILE
    tiles = panels * (panels + 1) // 2
    means = 0 if n <= _SMALL_ROWS else sum(dims)
    return head + _aligned(count * tiles * _TILE * _TILE * element) + _aligned(means * element)


def _aligned(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
