"""How sure a CKA is: standard errors over batches, permutation tests, levels of chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import checks
from ..ops.similarity.kernels import Kernel, resolve_kernel
from .grams import centred, layer_gram, products, self_products, silenced
from .sums import Shape

_LEAST_GROUPS = 2


def jackknife(groups: Tensor, shape: Shape) -> Tensor | None:
    """Standard error of CKA from leaving out one group of batches at a time (Tukey 1958).

    ``SE² = (G - 1)/G Σ_g (θ_(-g) - mean θ_(-g))²``.

    Args:
        groups: ``(G, size)`` packed sums.
        shape: of the matrix.

    Returns:
        ``(rows, columns)``, or None with fewer than two groups.
    """
    count = len(groups)
    if count < _LEAST_GROUPS:
        return None
    total = groups.sum(dim=0)
    mean = torch.zeros(shape.rows, shape.columns, dtype=groups.dtype, device=groups.device)
    squares = torch.zeros_like(mean)
    base = shape.cka(total)
    for group in groups:  # one at a time: G matrices of 200 x 200 need not be held together
        difference = shape.cka(_not_negative(total - group, shape)) - base
        mean += difference / count
        squares += difference.square() / count
    return ((count - 1) * (squares - mean.square()).clamp(min=0)).sqrt()


def bootstrap(groups: Tensor, shape: Shape, replicates: int = 1000, seed: int = 0) -> Tensor | None:
    """Standard error of CKA from drawing groups of batches with replacement (Efron 1979).

    Args:
        groups: ``(G, size)`` packed sums.
        shape: of the matrix.
        replicates: how many samples of groups are drawn.
        seed: of the draws.

    Returns:
        ``(rows, columns)``, or None with fewer than two groups.
    """
    count = len(groups)
    if count < _LEAST_GROUPS:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (replicates, count), generator=generator)
    weights = torch.zeros(replicates, count, dtype=groups.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=groups.dtype))
    weights = weights.to(groups.device)
    mean = torch.zeros(shape.rows, shape.columns, dtype=groups.dtype, device=groups.device)
    squares = torch.zeros_like(mean)
    base = shape.cka(groups.sum(dim=0))
    step = max(1, (1 << 24) // shape.size)
    for start in range(0, replicates, step):
        difference = shape.cka(weights[start : start + step] @ groups) - base
        mean += difference.sum(dim=0) / replicates
        squares += difference.square().sum(dim=0) / replicates
    return ((squares - mean.square()).clamp(min=0) * replicates / (replicates - 1)).sqrt()


def _not_negative(packed: Tensor, shape: Shape) -> Tensor:
    """Self-HSIC of what is left may round below zero where one group held all of it."""
    count = shape.rows * shape.columns
    return torch.cat([packed[:count], packed[count:].clamp(min=0)])


def p_values(null: Tensor, observed: Tensor) -> Tensor:
    """One-sided p-values, ``(1 + #{null >= observed}) / (1 + permutations)``.

    Args:
        null: ``(permutations, rows, columns)``.
        observed: ``(rows, columns)``.
    """
    # A permutation that changes nothing must count in spite of rounding.
    at_least = null >= observed - 1e-9 * observed.abs()
    return (1 + at_least.sum(dim=0)) / (1.0 + len(null))


def permutation_test(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str | Kernel = "linear",
    estimator: str = "unbiased",
    permutations: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """CKA of two feature tensors, and how often chance alone gives as much.

    The samples of ``y`` are permuted; the centred Gram matrices are made once.

    Args:
        x: ``(n, ...)`` features, n >= 4.
        y: ``(n, ...)`` features of the same samples.
        kernel: as in :func:`sparsekern.gram`.
        estimator: ``"unbiased"`` or ``"biased"``.
        permutations: how many.
        seed: of the permutations.

    Returns:
        CKA, and the p-value ``(1 + #{permuted >= observed}) / (1 + permutations)``.

    Raises:
        ValueError: if ``x`` and ``y`` differ in n, or n or the number of permutations is too small.
    """
    if checks.whole_number(permutations, "permutations") < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    if x.shape[:1] != y.shape[:1] or x.dim() == 0 or len(x) < 4:
        raise ValueError(
            f"x and y must hold the same samples, at least 4: got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    resolved = resolve_kernel(kernel)
    flat = [one.detach().flatten(1) if one.dim() > 1 else one[:, None] for one in (x, y)]
    grams = centred([layer_gram(one, resolved) for one in flat], estimator)
    row, other = grams.rows[:1], grams.rows[1:]
    n = len(x)
    v = other.view(n, n)
    own = silenced(self_products(grams.rows), grams.noise)
    observed = products(row, other)
    generator = torch.Generator().manual_seed(seed)
    null = []
    step = max(1, (1 << 24) // (n * n))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        order = torch.stack([torch.randperm(n, generator=generator) for _ in range(count)])
        order = order.to(v.device)
        null.append(products(v[order[:, :, None], order[:, None, :]].flatten(1), row))
    p = p_values(torch.cat(null)[:, :, None], observed)
    norms = own.prod().sqrt()
    return (float(observed / norms), float(p)) if norms > 0 else (0.0, 1.0)


def chance_level(
    estimator: str, batch_sizes: Sequence[int], features: tuple[int, int] | None = None
) -> tuple[float, float]:
    """What CKA of independent Gaussian features is: its mean and standard deviation.

    Unbiased: mean 0 and standard deviation ``1/√(Σ n (n - 3)/2)`` over the batches, the dimension
    of the space that U-centred matrices lie in. Biased: mean ``√(pq / ((n + p)(n + q)))``, which
    is near 1 for features wider than the batch.

    Args:
        estimator: ``"unbiased"`` or ``"biased"``.
        batch_sizes: samples of each batch.
        features: p and q, needed for the biased estimator.

    Returns:
        Mean and standard deviation; the latter is NaN for the biased estimator.

    Raises:
        TypeError: for something else than a list of whole numbers.
        ValueError: for another estimator, the biased one without ``features``, or a batch below 4.
    """
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f'estimator must be "unbiased" or "biased", got {estimator!r}')
    if not isinstance(batch_sizes, Sequence) or isinstance(batch_sizes, str):
        raise TypeError(f"batch_sizes must be a list of whole numbers, got {batch_sizes!r:.80}")
    sizes = [checks.whole_number(size, "each of batch_sizes") for size in batch_sizes]
    if not sizes or min(sizes) < 4:
        raise ValueError(f"batch_sizes must hold numbers of at least 4, got {sizes}")
    if estimator == "unbiased":
        return 0.0, 1 / math.sqrt(sum(n * (n - 3) / 2 for n in batch_sizes))
    if features is None:
        raise ValueError("features must be given: biased CKA of chance depends on the widths")
    if not isinstance(features, Sequence) or len(features) != 2:
        raise TypeError(f"features must be two whole numbers, got {features!r:.80}")
    p, q = (checks.whole_number(width, "each of features") for width in features)
    n = sum(batch_sizes) / len(batch_sizes)
    return math.sqrt(p * q / ((n + p) * (n + q))), math.nan
