"""Gram matrices of one batch: what hooks reduce features to, and their inner products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.precision import sum_dtype
from ..ops.similarity import RBF, Linear, Polynomial, gram
from ..ops.similarity.kernels import Kernel
from ..ops.similarity.reference import NOISE_UNITS

_CHUNK = 1 << 14  # entries multiplied in float32 before they are added in float64


@dataclass(frozen=True)
class LayerGram:
    """What a hook keeps of one layer's features.

    Attributes:
        matrix: ``(n, n)``, doubly centred: what U-centring needs is in it, and its trace, which
            tells how large rounding is, too.
        noise: of the centred matrix's norm, what does not follow from ``matrix``: the rounding of
            the features themselves, or for some kernels all of it; a scalar in the sum dtype.
        trace_unit: how much of the trace rounding may be.
    """

    matrix: Tensor
    noise: Tensor
    trace_unit: float


def layer_gram(x: Tensor, kernel: Kernel) -> LayerGram:
    """The doubly centred Gram matrix of ``(n, d)`` features.

    Noise is told as the similarity operators tell it, from what is at hand: the trace of ``HKH``
    instead of that of the features' products. Only where all samples nearly agree does the rounding
    of the features themselves count, and then the first one has the energy of each.

    Raises:
        ValueError: if features are not finite (told on the CPU; elsewhere the result is NaN).
    """
    k = gram(x, kernel, center="double")
    wide, n = sum_dtype(k), len(k)
    unit = NOISE_UNITS * torch.finfo(k.dtype).eps / 2
    if isinstance(kernel, Linear):
        input_unit = torch.finfo(x.dtype).eps / 2
        energy = n * torch.linalg.vector_norm(x[0], dtype=wide).square()
        width = max(1, x.shape[1]) ** 0.5
        return LayerGram(k, energy * (NOISE_UNITS * input_unit**2 / width), unit)
    if isinstance(kernel, RBF):
        # ‖K‖² ≈ ‖HKH‖² + (1ᵀK1/n)², and the trace of K is n.
        rest = n - k.diagonal().sum(dtype=wide)
        norm = (torch.linalg.vector_norm(k, dtype=wide).square() + rest.square()).sqrt()
        return LayerGram(k, unit * norm, 0.0)
    if isinstance(kernel, Polynomial):
        diagonal = (x.to(wide).square().sum(1) + kernel.c).pow(kernel.degree)
        return LayerGram(k, unit * diagonal.sum(), 0.0)
    return LayerGram(k, torch.tensor(unit * n, dtype=wide, device=k.device), 0.0)  # cosine


@dataclass(frozen=True)
class CentredGrams:
    """Centred Gram matrices of several layers, scaled so that no product leaves the range.

    Attributes:
        rows: ``(layers, n²)``, U-centred or doubly centred, divided by ``scale``.
        scale: ``(layers,)``, the mean energy of a sample.
        noise: ``(layers,)``: squared norms of ``rows`` up to this are no more than rounding.
    """

    rows: Tensor
    scale: Tensor
    noise: Tensor


def centred(grams: Sequence[LayerGram], estimator: str) -> CentredGrams:
    """Centres and scales the Gram matrices of all layers at once, on the first one's device."""
    device, n = grams[0].matrix.device, len(grams[0].matrix)
    dtype = torch.float32
    for item in grams:
        dtype = torch.promote_types(dtype, item.matrix.dtype)
    stack = torch.stack([item.matrix.to(device, dtype) for item in grams])  # (layers, n, n)
    wide = sum_dtype(stack)
    diagonal = stack.diagonal(dim1=1, dim2=2)
    trace = diagonal.sum(dim=1, dtype=wide)
    scale = torch.where(trace == 0, 1, trace / n)
    units = torch.tensor([item.trace_unit for item in grams], dtype=wide, device=device)
    noise = torch.stack([item.noise.to(device, wide) for item in grams]) + units * trace
    stack *= (1 / scale).to(dtype)[:, None, None]
    if estimator == "unbiased":
        # U-centring (Székely & Rizzo 2014): K_ij - s_i - s_j off the diagonal.
        diagonal.zero_()
        rows = stack.sum(dim=2).to(wide) / (n - 2)
        shift = (rows - rows.sum(dim=1, keepdim=True) / (2 * (n - 1))).to(dtype)
        stack -= shift[:, :, None]
        stack -= shift[:, None, :]
        diagonal.zero_()
    return CentredGrams(stack.flatten(1), scale, (noise / scale).square())


def silenced(squares: Tensor, noise: Tensor) -> Tensor:
    """Squared norms with those that are no more than rounding set to 0; NaN stays, to be told."""
    return torch.where(squares <= noise, 0, squares)


def products(a: Tensor, b: Tensor) -> Tensor:  # (p, m), (q, m) -> (p, q)
    """All inner products of rows, added in float64."""
    wide = sum_dtype(a)
    total = a.new_zeros(len(a), len(b), dtype=wide)
    for start in range(0, a.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        total += (a[:, part] @ b[:, part].T).to(wide)
    return total


def self_products(a: Tensor) -> Tensor:  # (p, m) -> (p,)
    """The squared norm of each row."""
    return torch.stack([row.square().sum() for row in a]).to(sum_dtype(a))
