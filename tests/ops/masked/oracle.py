"""Masked products the plain way, in float64: what every back end and algorithm is held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# batch, columns, rows: on and off the panel widths (16, 32, 64 lanes of float32) and their sums,
# one and several packing blocks (256 features), row tasks (64 rows), and more than one batch of
# panels (1024 lanes).
SHAPES = (
    (1, 5, 3),
    (1, 300, 130),
    (2, 70, 130),
    (17, 33, 16),
    (33, 300, 77),
    (64, 64, 64),
    (112, 257, 65),
    (1100, 40, 33),
)
SPARSITIES = (0.0, 0.5, 0.95, 1.0)


def problem(
    batch: int, columns: int, rows: int, sparsity: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, mask, bias of a masked linear layer."""
    x, weight = torch.randn(batch, columns), torch.randn(rows, columns) / max(columns, 1) ** 0.5
    mask = torch.rand(rows, columns) >= sparsity
    return x.to(dtype), weight.to(dtype), mask, torch.randn(rows).to(dtype)


def poison(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight with NaN and infinities wherever the mask is False."""
    bad = torch.tensor([float("nan"), float("inf"), float("-inf")]).to(weight.dtype)
    return torch.where(mask, weight, bad[torch.arange(weight.numel()) % 3].view(weight.shape))


def linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, grad: Tensor, dense: bool = False
) -> list[Tensor]:
    """Result and gradients (x, weight, bias) of a masked linear layer, in float64."""
    x, weight, grad = x.double(), weight.double(), grad.double()
    kept = torch.where(mask, weight, 0)
    out = x @ kept.T
    product = grad.T @ x
    results = [out, grad @ kept, product if dense else torch.where(mask, product, 0)]
    if bias is not None:
        results[0] = out + bias.double()
        results.append(grad.sum(dim=0))
    return results


def assert_close(
    found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype, long: bool = False
) -> None:
    """Within a few rounding units of the largest entry; 16-bit sums are in float32.

    ``long``: sums of thousands of products, whose rounding adds up to more.
    """
    units = {torch.float32: 16, torch.float64: 16}.get(dtype, 2) * (4 if long else 1)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == wanted.shape
        if actual.numel() == 0:
            continue
        error = (actual.double() - wanted).abs().max()
        bound = units * torch.finfo(dtype).eps * wanted.abs().max()
        assert error <= bound, f"{error:.2e} against a bound of {bound:.2e}"
