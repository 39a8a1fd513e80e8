"""Similarity in plain PyTorch: the definition, the float64 oracle, and the fallback everywhere.

Read it as the textbook: features -> Gram matrix -> centring -> inner products -> CKA. Everything
is differentiable, any number of times, by torch's own autograd. Autocast is off inside: the
operators compute in the precision that the dtype of their inputs asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import accumulation_dtype, sum_dtype, without_autocast
from .kernels import RBF, Cosine, Kernel, Linear, Polynomial

# How many rounding units of its own making a centred Gram's norm must exceed to be told from 0.
NOISE_UNITS = 4.0


def column_means(x: Tensor) -> Tensor:  # (n, d) -> (d,)
    """The mean of each feature, in the sum dtype.

    Taken about the first sample, so that identical samples have exactly their own mean in
    float64 too, where a plain sum of them would round.
    """
    x = x.to(sum_dtype(x))
    pivot = x[0].detach()
    return pivot + (x - pivot).mean(dim=0)


def center_columns(x: Tensor) -> Tensor:  # (n, d) -> (n, d)
    """Subtracts the mean of each feature; the result has the accumulation dtype."""
    dtype = accumulation_dtype(x.dtype)
    return x.to(dtype) - column_means(x).to(dtype)


def inner_products(x: Tensor) -> Tensor:  # (n, d) -> (n, n)
    """``x[i]·x[j]`` of the features as they are, put together from the centred ones.

    With ``x = m + c``, ``x_i·x_j = c_i·c_j + m·c_i + m·c_j + m·m``: what the samples have in
    common enters every entry alike, and its rounding is gone once the Gram matrix is centred.
    """
    centred = center_columns(x)
    wide = sum_dtype(x)
    mean = column_means(x).to(centred.dtype).to(wide)
    along = centred.to(wide) @ mean  # (n,)
    common = along[:, None] + along[None, :] + mean @ mean
    return ((centred @ centred.T).to(wide) + common).to(centred.dtype)


def unit_rows(x: Tensor) -> Tensor:  # (n, d) -> (n, d)
    """Each sample divided by its norm, in the accumulation dtype; a sample of zeros stays so."""
    features = x.to(accumulation_dtype(x.dtype))
    if features.shape[1] == 0:
        return features
    # Scaled first, so that neither tiny nor huge samples leave the range of floats when squared.
    peak = features.detach().abs().amax(dim=1, keepdim=True)
    is_zero = peak == 0
    features = features / torch.where(is_zero, 1, peak)
    squares = features.square().sum(dim=1, keepdim=True)
    return features * torch.where(is_zero, 0, torch.where(is_zero, 1, squares).rsqrt())


def squared_distances(x: Tensor) -> Tensor:  # (n, d) -> (n, n)
    """All pairwise squared Euclidean distances, from the Gram matrix of the centred features."""
    xc = center_columns(x)
    dots = xc @ xc.T
    norms = dots.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * dots).clamp(min=0)
    return distances * (1 - torch.eye(len(x), dtype=dots.dtype, device=x.device))


def median_with_diagonal(distances: Tensor) -> Tensor:  # (n, n) -> ()
    """Median of all n² entries as numpy takes it: the mean of the middle two where n² is even."""
    flat = distances.flatten()
    count = flat.numel()
    low = flat.kthvalue((count - 1) // 2 + 1).values
    high = flat.kthvalue(count // 2 + 1).values
    return (low + high) / 2


def kernel_matrix(x: Tensor, kernel: Kernel) -> Tensor:  # (n, d) -> (n, n)
    """The Gram matrix ``K[i, j] = k(x[i], x[j])``, before any centring of K itself.

    Linear and RBF see column-centred features: centring K undoes a shift of the features, and
    doing it first keeps float32 exact at any offset. The other kernels depend on the shift, and
    get it back as one number per sample.
    """
    if isinstance(kernel, Linear):
        xc = center_columns(x)
        return xc @ xc.T
    if isinstance(kernel, RBF):
        distances = squared_distances(x)
        if kernel.bandwidth is not None:
            variance = distances.new_tensor(kernel.bandwidth * kernel.bandwidth)
        else:
            variance = kernel.fraction**2 * median_with_diagonal(distances)
        degenerate = variance == 0  # over half of the pairs coincide: the limit of a narrow kernel
        narrow = (distances == 0).to(distances.dtype)
        wide = torch.exp(-distances / (2 * torch.where(degenerate, 1, variance)))
        return torch.where(degenerate, narrow, wide)
    if isinstance(kernel, Polynomial):
        return (inner_products(x) + kernel.c).pow(kernel.degree)
    assert isinstance(kernel, Cosine)
    return inner_products(unit_rows(x))


def double_center(k: Tensor) -> Tensor:  # (n, n) -> (n, n)
    """``H K H`` with ``H = I - 11ᵀ/n``."""
    rows = k.sum(dim=1, dtype=sum_dtype(k)) / len(k)
    return k - (rows[:, None] + rows[None, :] - rows.mean()).to(k.dtype)


def u_center(k: Tensor) -> Tensor:  # (n, n) -> (n, n)
    """U-centring (Székely & Rizzo 2014): zero diagonal, zero row sums, unbiased inner products.

    ``U[i, j] = K[i, j] - r[i]/(n-2) - r[j]/(n-2) + T/((n-1)(n-2))`` off the diagonal, with ``r``
    the row sums of K without its diagonal and ``T`` their sum.
    """
    n = len(k)
    off_diagonal = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k = k * off_diagonal
    rows = k.sum(dim=1, dtype=sum_dtype(k))
    shift = rows / (n - 2)
    total = rows.sum() / ((n - 1) * (n - 2))
    return (k - (shift[:, None] + shift[None, :] - total).to(k.dtype)) * off_diagonal


def gram(x: Tensor, kernel: Kernel, center: str | None) -> Tensor:  # (n, d) -> (n, n)
    """The Gram matrix, plain (``None``), doubly centred (``"double"``) or U-centred (``"u"``)."""
    with without_autocast(x):
        return _gram(x, kernel, center)


def _gram(x: Tensor, kernel: Kernel, center: str | None) -> Tensor:
    if center is not None:
        k = kernel_matrix(x, kernel)
        return u_center(k) if center == "u" else double_center(k)
    if isinstance(kernel, RBF):
        return kernel_matrix(x, kernel)
    # Without centring every entry counts for itself, to the rounding of its own two samples.
    cosine = isinstance(kernel, Cosine)
    features = unit_rows(x) if cosine else x.to(accumulation_dtype(x.dtype))
    dots = features @ features.T
    return (dots + kernel.c).pow(kernel.degree) if isinstance(kernel, Polynomial) else dots


def _noise_level(x: Tensor, k: Tensor, kernel: Kernel) -> Tensor:  # -> ()
    """The norm that rounding alone could give the centred Gram matrix of these features.

    Two sources: the products that made K (relative to its trace, or to its norm where K has a
    unit diagonal and tiny entries are exact), and the rounding of the features themselves, which
    matters when they are nearly constant. Both scale as K does, so the test is scale-free.
    """
    unit = torch.finfo(k.dtype).eps / 2
    if isinstance(kernel, RBF):
        norm: Tensor = torch.linalg.vector_norm(k)
        return NOISE_UNITS * unit * norm
    level = NOISE_UNITS * unit * k.diagonal().abs().sum()
    if isinstance(kernel, Linear) and x.shape[1] > 0:
        input_unit = torch.finfo(x.dtype).eps / 2
        energy = x.to(sum_dtype(x)).square().sum()
        level = level + NOISE_UNITS * input_unit**2 * energy / x.shape[1] ** 0.5
    return level


def centred_vectors(xs: Sequence[Tensor], kernel: Kernel, estimator: str) -> tuple[Tensor, Tensor]:
    """One row per layer: its centred Gram matrix, flattened, and whether it is more than noise.

    Returns:
        ``(len(xs), n²)`` in the sum dtype and ``(len(xs),)`` bool.
    """
    rows, signal = [], []
    for x in xs:
        k = kernel_matrix(x, kernel)
        centred = u_center(k) if estimator == "unbiased" else double_center(k)
        row = centred.flatten().to(sum_dtype(x))
        norm = torch.linalg.vector_norm(row.detach())
        signal.append(~(norm <= _noise_level(x, k, kernel).detach()))  # NaN stays a signal
        rows.append(row)
    return torch.stack(rows), torch.stack(signal)


def hsic_scale(n: int, estimator: str) -> float:
    """What divides the inner product of centred Gram matrices to make it HSIC."""
    return n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2


def hsic_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, kernel: Kernel, estimator: str
) -> Tensor:
    """``HSIC(x, y)`` for every x of ``xs`` and y of ``ys`` (or ``xs``): ``(len(xs), len(ys))``."""
    with without_autocast(xs[0]):
        a, _ = centred_vectors(xs, kernel, estimator)
        b = None if ys is None else centred_vectors(ys, kernel, estimator)[0]
        products = _products(a, b) / hsic_scale(len(xs[0]), estimator)
    return products.to(accumulation_dtype(xs[0].dtype))


def hsic(x: Tensor, y: Tensor, kernel: Kernel, estimator: str) -> Tensor:
    """``HSIC(x, y)`` of one pair, a scalar."""
    return hsic_matrix([x], [y], kernel, estimator).reshape(())


def _products(a: Tensor, b: Tensor | None) -> Tensor:  # (p, m), (q, m) -> (p, q)
    """All inner products of rows; of ``a`` with itself, symmetric to the last bit."""
    if b is not None:
        return a @ b.T
    products = a @ a.T
    return (products + products.T) / 2


def _unit_vectors(xs: Sequence[Tensor], kernel: Kernel, estimator: str) -> Tensor:
    """Centred Gram matrices as unit vectors; a degenerate layer is the zero vector."""
    vectors, signal = centred_vectors(xs, kernel, estimator)
    vectors = torch.where(signal[:, None], vectors, 0)
    # Scaled before squaring, so that neither tiny nor huge features leave the range of floats.
    peak = vectors.detach().abs().amax(dim=1, keepdim=True)
    vectors = vectors / torch.where(signal[:, None], peak, 1)
    squares = torch.where(signal, vectors.square().sum(dim=1), 1)
    return vectors / squares.sqrt()[:, None]


def cka_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, kernel: Kernel, estimator: str
) -> Tensor:
    """``CKA(x, y)`` for every x of ``xs`` and y of ``ys`` (or ``xs``): ``(len(xs), len(ys))``."""
    with without_autocast(xs[0]):
        a = _unit_vectors(xs, kernel, estimator)
        b = None if ys is None else _unit_vectors(ys, kernel, estimator)
        products = _products(a, b)
    return products.to(accumulation_dtype(xs[0].dtype))


def cka(x: Tensor, y: Tensor, kernel: Kernel, estimator: str) -> Tensor:
    """``CKA(x, y)`` of one pair, a scalar."""
    return cka_matrix([x], [y], kernel, estimator).reshape(())


def cka_sum(
    groups: Sequence[Sequence[Tensor]], kernel: Kernel, estimator: str, reduction: str
) -> Tensor:
    """The CKA-SR loss (Ni et al. 2023), ``Σ_{i,j} CKA(x_i, x_j)`` inside each group, or the mean.

    Returns:
        A scalar: for ``"sum"`` the sum over ordered pairs inside each group, ``i = j`` included;
        for ``"mean"`` the mean over the unordered pairs ``i < j`` of all layers of all groups.
    """
    if reduction == "mean":
        groups = [[x for group in groups for x in group]]
    first = groups[0][0]
    total = torch.zeros((), dtype=sum_dtype(first), device=first.device)
    for group in groups:
        similarity = cka_matrix(group, None, kernel, estimator).to(total.dtype)
        if reduction == "mean":
            pairs = similarity.triu(diagonal=1)
            total = total + pairs.sum() / max(1, len(group) * (len(group) - 1) // 2)
        else:
            total = total + similarity.sum()
    return total.to(accumulation_dtype(first.dtype))
