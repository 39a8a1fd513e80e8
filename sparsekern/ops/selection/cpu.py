"""Selection on the compiled core: the operators, their registration, and calls of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import native
from ..memory import contiguous, dense, describe
from ..registry import DTYPE_CODES, register, run
from .reference import nan_error, removed_count

_FAMILY = "selection"


def magnitude_threshold(
    tensors: Sequence[Tensor], sparsity: float, names: str, *, family: str = _FAMILY
) -> Tensor:
    """See :func:`sparsekern.magnitude_threshold`; arguments are checked but for NaN.

    The operator is that of a family: ``"selection"``, or another that follows its schemas.
    """
    with torch.no_grad():
        result: Tensor = run(f"{family}_threshold", list(tensors), sparsity, names)
    return result


def global_masks(
    tensors: Sequence[Tensor],
    sparsity: float,
    magnitude: bool,
    names: str,
    *,
    family: str = _FAMILY,
) -> list[Tensor]:
    """See :func:`sparsekern.global_masks`; arguments are checked but for NaN."""
    with torch.no_grad():
        masks: list[Tensor] = run(f"{family}_masks", list(tensors), sparsity, magnitude, names)
    return masks


def _threshold(tensors: Sequence[Tensor], sparsity: float, names: str) -> Tensor:
    rows = [dense(x) for x in tensors]
    total = sum(x.numel() for x in rows)
    rank = min(removed_count(sparsity, total), total - 1)
    dtype = rows[0].dtype
    out = torch.empty((), dtype=dtype, device="cpu")
    culprit = native.cpu().magnitude_threshold(
        describe(rows), DTYPE_CODES[dtype], rank, out.data_ptr(), torch.get_num_threads()
    )
    if culprit >= 0:
        raise nan_error(tensors[culprit], names.format(culprit))
    return out


def _masks(tensors: Sequence[Tensor], sparsity: float, magnitude: bool, names: str) -> list[Tensor]:
    rows = [contiguous(x) for x in tensors]  # positions are row-major
    masks = [torch.empty(x.shape, dtype=torch.bool, device="cpu") for x in rows]
    culprit = native.cpu().largest_masks(
        describe(rows),
        DTYPE_CODES[rows[0].dtype],
        magnitude,
        removed_count(sparsity, sum(x.numel() for x in rows)),
        [mask.data_ptr() for mask in masks],
        torch.get_num_threads(),
    )
    if culprit >= 0:
        raise nan_error(tensors[culprit], names.format(culprit))
    return masks


def _masks_fake(
    tensors: Sequence[Tensor], sparsity: float, magnitude: bool, names: str
) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=torch.bool) for x in tensors]


SCHEMAS = {
    "threshold": "(Tensor[] tensors, float sparsity, str names) -> Tensor",
    "masks": "(Tensor[] tensors, float sparsity, bool magnitude, str names) -> Tensor[]",
}
FAKES: dict[str, Callable[..., Any]] = {
    "threshold": lambda tensors, sparsity, names: tensors[0].new_empty(()),
    "masks": _masks_fake,
}
register(f"{_FAMILY}_threshold", SCHEMAS["threshold"], _threshold, FAKES["threshold"])
register(f"{_FAMILY}_masks", SCHEMAS["masks"], _masks, FAKES["masks"])
