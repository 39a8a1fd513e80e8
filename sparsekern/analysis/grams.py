"""One layer's centred Gram matrix of one batch: what a hook reduces features to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.precision import sum_dtype
from ..ops.similarity import RBF, Linear, Polynomial, gram
from ..ops.similarity.kernels import Kernel
from ..ops.similarity.reference import NOISE_UNITS

_CHUNK = 1 << 14  # entries multiplied in float32 before they are added in float64


@dataclass(frozen=True)
class CentredGram:
    """A centred Gram matrix divided by its largest entry, so that no product leaves the range.

    Attributes:
        matrix: ``(n, n)``; U-centred or doubly centred; zero where it would be no more than
            rounding.
        peak: what it was divided by, a scalar.
    """

    matrix: Tensor
    peak: Tensor


def centred_gram(x: Tensor, kernel: Kernel, estimator: str) -> CentredGram:
    """The centred Gram matrix of ``(n, d)`` features.

    Doubly centred first: the projection of U-centring takes away what double centring does, and
    the trace, which tells how large rounding is, survives.

    Raises:
        ValueError: if features are not finite (told on the CPU; elsewhere the result is NaN).
    """
    k = gram(x, kernel, center="double")  # (n, n)
    level = _noise_level(x, k, kernel)
    if estimator == "unbiased":
        _u_center_(k)
    peak = k.abs().amax()
    k = k.div_(torch.where(peak == 0, 1, peak))
    wide = sum_dtype(k)
    norm = torch.linalg.vector_norm(k, dtype=wide) * peak.to(wide)
    # NaN stays a signal: it must reach the result and be told.
    k = k.mul_(~(norm <= level))
    return CentredGram(k, peak.to(wide))


def _u_center_(k: Tensor) -> Tensor:  # (n, n) -> (n, n)
    """U-centring in place: ``K_ij - s_i - s_j`` off the diagonal (Székely & Rizzo 2014)."""
    n = len(k)
    k.fill_diagonal_(0)
    rows = k.sum(dim=1, dtype=sum_dtype(k)) / (n - 2)
    shift = (rows - rows.sum() / (2 * (n - 1))).to(k.dtype)
    return k.sub_(shift[:, None]).sub_(shift[None, :]).fill_diagonal_(0)


def _noise_level(x: Tensor, k: Tensor, kernel: Kernel) -> Tensor:  # -> ()
    """The norm that rounding alone could give the centred Gram matrix ``k`` of features ``x``.

    As the similarity operators tell it, from what is at hand here: the trace of ``HKH`` instead of
    that of the features' products. Only where all samples nearly agree does the rounding of the
    features themselves count, and then the first one has the energy of each.
    """
    wide, n = sum_dtype(k), len(k)
    unit = torch.finfo(k.dtype).eps / 2
    trace = k.diagonal().sum(dtype=wide)
    if isinstance(kernel, RBF):
        # ‖K‖² ≈ ‖HKH‖² + (1ᵀK1/n)², and the trace of K is n.
        squares = torch.linalg.vector_norm(k, dtype=wide).square() + (n - trace).square()
        level: Tensor = NOISE_UNITS * unit * squares.sqrt()
        return level
    if isinstance(kernel, Linear):
        input_unit = torch.finfo(x.dtype).eps / 2
        energy = n * x[0].to(wide).square().sum()
        rounding: Tensor = unit * trace + input_unit**2 * energy / max(1, x.shape[1]) ** 0.5
        return NOISE_UNITS * rounding
    if isinstance(kernel, Polynomial):
        return NOISE_UNITS * unit * (x.to(wide).square().sum(1) + kernel.c).pow(kernel.degree).sum()
    return torch.full_like(trace, NOISE_UNITS * unit * n)  # cosine: a diagonal of ones


def stacked(grams: list[CentredGram], device: torch.device) -> tuple[Tensor, Tensor]:
    """All matrices as rows: ``(layers, n²)``, and the peaks ``(layers,)``.

    Raises:
        ValueError: if layers differ in the number of samples.
    """
    dtype = torch.float32
    for item in grams:
        dtype = torch.promote_types(dtype, item.matrix.dtype)
    rows = torch.stack([item.matrix.to(device, dtype).flatten() for item in grams])
    return rows, torch.stack([item.peak.to(device) for item in grams])


def products(a: Tensor, b: Tensor) -> Tensor:  # (p, m), (q, m) -> (p, q)
    """All inner products of rows, added in float64."""
    wide = sum_dtype(a)
    total = a.new_zeros(len(a), len(b), dtype=wide)
    for start in range(0, a.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        total += (a[:, part] @ b[:, part].T).to(wide)
    return total


def self_products(a: Tensor) -> Tensor:  # (p, m) -> (p,)
    """The squared norm of each row, in float64."""
    norms: Tensor = torch.linalg.vector_norm(a, dim=1, dtype=sum_dtype(a))
    return norms.square()
