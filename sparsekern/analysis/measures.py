"""What people ask for beside CKA: RSA, nearest neighbours, Procrustes, SVCCA and PWCCA.

All compute in float64 from two sets of features of the same samples. Debiased CKA is the default
of this package: it needs no choice of k or of a variance, its value for unrelated layers is 0
whatever their width, and it adds up over batches. None of these does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.similarity import Linear, gram
from ..ops.similarity.kernels import Kernel, resolve_kernel

_DISTANCES = ("correlation", "cosine", "euclidean")
_COMPARISONS = ("spearman", "pearson")


def rsa(
    x: Tensor, y: Tensor, *, distance: str = "correlation", comparison: str = "spearman"
) -> float:
    """Representational similarity analysis (Kriegeskorte et al. 2008).

    The correlation between the dissimilarities of all pairs of samples in ``x`` and in ``y``.

    Args:
        x: ``(n, ...)`` features, n >= 3.
        y: ``(n, ...)`` features of the same samples.
        distance: ``"correlation"`` (1 minus Pearson's correlation of two samples' features),
            ``"cosine"`` or ``"euclidean"``.
        comparison: ``"spearman"`` (ranks, ties shared) or ``"pearson"``.

    Returns:
        In [-1, 1]; 0 where one of the two has no variation.

    Raises:
        TypeError, ValueError: for features that do not fit together, or unknown names.
    """
    _one_of("distance", distance, _DISTANCES)
    _one_of("comparison", comparison, _COMPARISONS)
    x, y = _features(x, y, least=3)
    vectors = [_dissimilarities(one, distance) for one in (x, y)]
    if comparison == "spearman":
        vectors = [_ranks(vector) for vector in vectors]
    return _correlation(*vectors)


def mutual_knn(x: Tensor, y: Tensor, *, k: int = 10, kernel: str | Kernel = "cosine") -> float:
    """How many of its k nearest neighbours a sample has in common in ``x`` and ``y``, on average.

    The mutual k-nearest-neighbour metric of Huh et al. 2024 (arXiv 2405.07987):
    ``mean_i |N_k(x_i) ∩ N_k(y_i)| / k``. By chance ``k / (n - 1)``.

    Args:
        x: ``(n, ...)`` features, n > k.
        y: ``(n, ...)`` features of the same samples.
        k: neighbours, the sample itself aside.
        kernel: what is largest for the nearest; as in :func:`sparsekern.gram`.

    Raises:
        TypeError, ValueError: for features that do not fit together, or k outside [1, n - 1].
    """
    first, second = _neighbours(x, y, k, kernel)[2:]
    return int((first & second).sum()) / (len(first) * k)


def cknna(x: Tensor, y: Tensor, *, k: int = 10, kernel: str | Kernel = "linear") -> float:
    """Centred kernel nearest-neighbour alignment, in the sense of Huh et al. 2024.

    CKA whose sums run over mutual neighbours only: with ``K̄_ij = K_ij - mean_l K_il`` and
    ``α_ij = 1`` where j is among the k nearest of i in both,
    ``Align(K, L) = Σ_ij α_ij K̄_ij L̄_ij`` and ``CKNNA = Align(K, L) / √(Align(K, K) Align(L, L))``.

    Args:
        x: ``(n, ...)`` features, n > k.
        y: ``(n, ...)`` features of the same samples.
        k: neighbours; with ``k = n - 1`` all pairs count.
        kernel: as in :func:`sparsekern.gram`.

    Raises:
        TypeError, ValueError: as :func:`mutual_knn`.
    """
    first, second, near_x, near_y = _neighbours(x, y, k, kernel)
    first, second = (one - one.mean(dim=1, keepdim=True) for one in (first, second))
    cross = (first * second)[near_x & near_y].sum()
    norms = (first[near_x].square().sum() * second[near_y].square().sum()).sqrt()
    return float(cross / norms) if norms > 0 else 0.0


def procrustes(x: Tensor, y: Tensor) -> float:
    """Similarity after the best rotation, ``‖XᵀY‖_* / (‖X‖_F ‖Y‖_F)`` of centred features.

    The squared orthogonal Procrustes distance of features of unit norm (Williams et al. 2021) is
    2 minus twice this. For small d: singular values of a ``d_x x d_y`` matrix are taken.

    Args:
        x: ``(n, ...)`` features.
        y: ``(n, ...)`` features of the same samples; of another width they are padded with zeros.

    Returns:
        In [0, 1]; 0 where one of the two has no variation.

    Raises:
        TypeError, ValueError: for features that do not fit together.
    """
    x, y = (_centred(one) for one in _features(x, y, least=2))
    norm = float(torch.linalg.matrix_norm(x) * torch.linalg.matrix_norm(y))
    return float(torch.linalg.matrix_norm(x.T @ y, "nuc")) / norm if norm > 0 else 0.0


def svcca(x: Tensor, y: Tensor, *, variance: float = 0.99) -> float:
    """Mean canonical correlation of the directions that hold most variance (Raghu et al. 2017).

    Args:
        x: ``(n, ...)`` features.
        y: ``(n, ...)`` features of the same samples.
        variance: share of each one's variance that the singular directions kept must hold.

    Returns:
        The mean over the smaller number of directions kept, in [0, 1].

    Raises:
        TypeError, ValueError: for features that do not fit together, a variance outside (0, 1], or
            as many directions as samples leave freedom for, where every correlation is 1.
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be in (0, 1], got {variance}")
    x, y = _features(x, y, least=3)
    first, second = (_basis(one, name, variance) for one, name in ((x, "x"), (y, "y")))
    if not first.shape[1] or not second.shape[1]:
        return 0.0
    correlations = torch.linalg.svdvals(first.T @ second).clamp(max=1)
    return float(correlations.mean())


def pwcca(x: Tensor, y: Tensor) -> float:
    """Canonical correlations weighted by what they hold of ``x`` (Morcos et al. 2018).

    ``Σ_i w_i ρ_i / Σ_i w_i`` with ``w_i = Σ_j |⟨h_i, x_j⟩|``, ``h_i`` the canonical variates of
    ``x`` and ``x_j`` its centred features. Not symmetric in ``x`` and ``y``.

    Args:
        x: ``(n, ...)`` features, fewer than n - 1.
        y: ``(n, ...)`` features of the same samples.

    Returns:
        In [0, 1].

    Raises:
        TypeError, ValueError: as :func:`svcca`.
    """
    x, y = _features(x, y, least=3)
    first, second = (_basis(one, name, 1.0) for one, name in ((x, "x"), (y, "y")))
    if not first.shape[1] or not second.shape[1]:
        return 0.0
    left, correlations, _ = torch.linalg.svd(first.T @ second, full_matrices=False)
    weights = (_centred(x).T @ (first @ left)).abs().sum(dim=0)
    return float((weights * correlations.clamp(max=1)).sum() / weights.sum())


def _features(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    for name, one in (("x", x), ("y", y)):
        if not isinstance(one, Tensor) or not one.is_floating_point():
            kind = one.dtype if isinstance(one, Tensor) else type(one).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if one.dim() == 0 or len(one) < least:
            raise ValueError(
                f"{name} must hold at least {least} samples, got shape {tuple(one.shape)}"
            )
        if not torch.isfinite(one).all():
            raise ValueError(f"{name} holds values that are not finite (NaN or infinity)")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y {len(y)}: they must be the same samples")
    first, second = (one.detach().double().reshape(len(one), -1) for one in (x, y))
    return first, second.to(first.device)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=0)


def _dissimilarities(x: Tensor, distance: str) -> Tensor:  # (n, d) -> (n (n - 1) / 2,)
    row, column = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    if distance == "euclidean":
        # Not from products of features: those lose the distances of nearly equal samples.
        distances: Tensor = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        return distances[row, column]
    if distance == "correlation":
        x = x - x.mean(dim=1, keepdim=True)
    units = torch.nn.functional.normalize(x, dim=1, eps=0.0).nan_to_num(0.0)
    return 1 - (units @ units.T)[row, column]


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: Tensor = (ends - (counts + 1) / 2)[inverse]
    return ranks


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = _centred(x), _centred(y)
    norm = float(torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    return float(x @ y) / norm if norm > 0 else 0.0


def _neighbours(
    x: Tensor, y: Tensor, k: int, kernel: str | Kernel
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both Gram matrices, and which samples are among the k nearest of which."""
    x, y = _features(x, y, least=2)
    if not 1 <= k < len(x):
        raise ValueError(f"k must be from 1 to {len(x) - 1} for {len(x)} samples, got {k}")
    resolved = resolve_kernel(kernel)
    if isinstance(resolved, Linear):
        # The order of neighbours must not depend on where the origin is.
        x, y = _centred(x), _centred(y)
    grams, near = [], []
    for one in (x, y):
        matrix = gram(one, resolved)
        off_diagonal = matrix.clone().fill_diagonal_(-torch.inf)
        found = off_diagonal.topk(k, dim=1).indices
        grams.append(matrix)
        near.append(torch.zeros_like(matrix, dtype=torch.bool).scatter_(1, found, True))
    return grams[0], grams[1], near[0], near[1]


def _basis(x: Tensor, name: str, variance: float) -> Tensor:  # (n, d) -> (n, kept)
    """Orthonormal directions over samples that hold the given share of the variance."""
    left, values, _ = torch.linalg.svd(_centred(x), full_matrices=False)
    unit = torch.finfo(x.dtype).eps * max(x.shape)
    rank = int((values > unit * values[:1]).sum()) if values.numel() and values[0] > 0 else 0
    shares = values[:rank].square().cumsum(0) / values[:rank].square().sum()
    kept = min(rank, int((shares < variance - 1e-12).sum()) + 1) if rank else 0
    if kept >= len(x) - 1:
        raise ValueError(
            f"{name} has {kept} directions for {len(x)} samples, and any two such sets of features "
            "are perfectly correlated: take more samples, or fewer features"
        )
    basis: Tensor = left[:, :kept]
    return basis


def _one_of(argument: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}")
