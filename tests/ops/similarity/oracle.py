"""What the operators are tested against, written apart from the package, and the test data.

Two statements of the definitions: textbook sums in numpy at float64 (``np_*``), and what a user
would write in PyTorch (``eager_*``), which gives gradients at float64 and the error that counts
as usual at the other dtypes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import sparsekern as sk

ESTIMATORS = ("unbiased", "biased")
KERNELS = {
    "linear": sk.Linear(),
    "rbf-median": sk.RBF(),
    "rbf-fraction": sk.RBF(fraction=1.5),
    "rbf-bandwidth": sk.RBF(bandwidth=2.0),
    "polynomial": sk.Polynomial(degree=3, c=0.5),
    "cosine": sk.Cosine(),
}
LOW_PRECISION = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *LOW_PRECISION)


def layers(n: int, widths: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Features that share a part, as the layers of one network do, so that no CKA is trivial."""
    shared = torch.randn(n, 3, dtype=torch.float64)
    return [
        (shared @ torch.randn(3, d, dtype=torch.float64) + torch.randn(n, d).double()).to(dtype)
        for d in widths
    ]


def leaves(xs: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in xs]


# ---- numpy, float64 -----------------------------------------------------------------------------


def np_gram(x: np.ndarray, kernel: sk.Linear) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    if isinstance(kernel, sk.Linear):
        return x @ x.T
    if isinstance(kernel, sk.RBF):
        distances = np.stack([((x - row) ** 2).sum(axis=1) for row in x])
        variance = kernel.fraction**2 * np.median(distances)
        if kernel.bandwidth is not None:
            variance = kernel.bandwidth**2
        return np.exp(-distances / (2 * variance))
    if isinstance(kernel, sk.Polynomial):
        return (x @ x.T + kernel.c) ** kernel.degree
    norms = np.linalg.norm(x, axis=1)
    return x @ x.T / np.outer(norms, norms)


def np_hsic(k: np.ndarray, m: np.ndarray, estimator: str) -> float:
    n = len(k)
    if estimator == "biased":  # tr(K H L H) / (n-1)²
        h = np.eye(n) - np.ones((n, n)) / n
        return float(np.trace(k @ h @ m @ h) / (n - 1) ** 2)
    k, m, one = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), np.ones(n)  # Song et al. 2012
    total = (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return float(total / (n * (n - 3)))


def np_hsic_matrix(
    xs: list[Tensor], ys: list[Tensor] | None, kernel: sk.Linear, estimator: str
) -> np.ndarray:
    a, b = _np_grams(xs, kernel), _np_grams(xs if ys is None else ys, kernel)
    return np.array([[np_hsic(k, m, estimator) for m in b] for k in a])


def np_scales(
    xs: list[Tensor], ys: list[Tensor] | None, kernel: sk.Linear, estimator: str
) -> np.ndarray:
    """The denominators of CKA, which also are the natural unit of an error in HSIC."""
    a, b = _np_grams(xs, kernel), _np_grams(xs if ys is None else ys, kernel)
    rows = [max(np_hsic(k, k, estimator), 0) ** 0.5 for k in a]
    columns = [max(np_hsic(k, k, estimator), 0) ** 0.5 for k in b]
    return np.outer(rows, columns)


def _np_grams(xs: list[Tensor], kernel: sk.Linear) -> list[np.ndarray]:
    arrays = [x.detach().double().flatten(1).numpy() for x in xs]
    if isinstance(kernel, sk.Linear):  # HSIC does not see the shift; Song's sums cancel with it
        arrays = [x - x.mean(axis=0) for x in arrays]
    return [np_gram(x, kernel) for x in arrays]


# ---- plain PyTorch, at any dtype ----------------------------------------------------------------


def eager_gram(x: Tensor, kernel: sk.Linear) -> Tensor:
    x = x.flatten(1)
    if isinstance(kernel, sk.Linear | sk.RBF):
        x = x - x.mean(dim=0)
    dots = x @ x.T
    norms = dots.diagonal()
    if isinstance(kernel, sk.Linear):
        return dots
    if isinstance(kernel, sk.RBF):
        distances = (norms[:, None] + norms - 2 * dots).clamp(min=0)
        distances = distances * (1 - torch.eye(len(x), dtype=x.dtype))
        ordered = distances.flatten().sort().values
        middle = len(ordered) // 2
        median = (ordered[middle] + ordered[middle - 1 + len(ordered) % 2]) / 2
        variance = kernel.fraction**2 * median
        if kernel.bandwidth is not None:
            variance = torch.tensor(kernel.bandwidth**2, dtype=x.dtype)
        return torch.exp(-distances / (2 * variance))
    if isinstance(kernel, sk.Polynomial):
        return (dots + kernel.c) ** kernel.degree
    return dots / (norms[:, None] * norms).sqrt()


def eager_center(k: Tensor, estimator: str) -> Tensor:
    n = len(k)
    if estimator == "biased":
        return k - k.mean(dim=0) - k.mean(dim=1, keepdim=True) + k.mean()
    k = k * (1 - torch.eye(n, dtype=k.dtype))
    rows = k.sum(dim=1)
    k = k - rows / (n - 2) - rows[:, None] / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return k * (1 - torch.eye(n, dtype=k.dtype))


def eager_hsic_matrix(
    xs: list[Tensor], ys: list[Tensor] | None, kernel: sk.Linear, estimator: str
) -> Tensor:
    """At 16 bits the Gram matrices are made in that dtype, and float32 is used from there."""
    a = _eager_vectors(xs, kernel, estimator)
    b = a if ys is None else _eager_vectors(ys, kernel, estimator)
    n = len(xs[0])
    return a @ b.T / (n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2)


def eager_cka_matrix(
    xs: list[Tensor], ys: list[Tensor] | None, kernel: sk.Linear, estimator: str
) -> Tensor:
    a = _eager_vectors(xs, kernel, estimator)
    b = a if ys is None else _eager_vectors(ys, kernel, estimator)
    return a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1))


def _eager_vectors(xs: list[Tensor], kernel: sk.Linear, estimator: str) -> Tensor:
    grams = [eager_gram(x, kernel) for x in xs]
    grams = [k.float() if k.dtype in LOW_PRECISION else k for k in grams]
    return torch.stack([eager_center(k, estimator).flatten() for k in grams])


def eager_cka_sum(
    groups: list[list[Tensor]], kernel: sk.Linear, estimator: str, reduction: str
) -> Tensor:
    if reduction == "sum":
        return sum(eager_cka_matrix(group, None, kernel, estimator).sum() for group in groups)
    together = [x for group in groups for x in group]
    matrix = eager_cka_matrix(together, None, kernel, estimator)
    i, j = torch.triu_indices(len(together), len(together), offset=1)
    return matrix[i, j].mean()


# ---- errors -------------------------------------------------------------------------------------


def relative_norm(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The Euclidean norm of the error over that of what was expected, all tensors together."""
    pairs = list(zip(actual, expected, strict=True))
    error = sum((a.double() - e.double()).square().sum() for a, e in pairs)
    return float((error / sum(e.double().square().sum() for _, e in pairs)).sqrt())


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(error))))
