"""Exact selection over lists of tensors: thresholds and masks of pruning, without concatenation."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import checks
from ..registry import back_end
from . import cpu, cuda, reference

__all__ = ["global_masks", "magnitude_threshold"]


def magnitude_threshold(tensors: Tensor | Sequence[Tensor], sparsity: float) -> Tensor:
    """The magnitude below which a share of all weights lies, exactly.

    Args:
        tensors: weights, one tensor or a list of tensors of any shapes, taken together as one;
            float32, float64, bfloat16 or float16, the same dtype and device in all. Empty tensors
            count nothing.
        sparsity: the share of weights, from 0 to 1.

    Returns:
        A scalar of the weights' dtype and device that carries no gradient: of the N magnitudes in
        ascending order the one at position ``floor(sparsity * N)``, counted from 0, or the largest
        where sparsity is 1. Keeping the magnitudes above it prunes at least that share.

    Raises:
        TypeError: for something else than floating-point tensors of one dtype.
        ValueError: for an empty list, no weights at all, a sparsity outside [0, 1], different
            devices, or a NaN (the error names the tensor; told on the CPU only, for looking would
            stall any other device).
    """
    weights, names = checked(tensors, "tensors", sparsity)
    result: Tensor = _back_end(weights).magnitude_threshold(weights, float(sparsity), names)
    return result


def global_masks(
    scores: Tensor | Sequence[Tensor], sparsity: float, *, magnitude: bool = False
) -> list[Tensor]:
    """Masks that keep the highest scores of all tensors together.

    Args:
        scores: one tensor or a list of tensors of any shapes, ranked together; float32, float64,
            bfloat16 or float16, the same dtype and device in all.
        sparsity: the share that is not kept, from 0 to 1.
        magnitude: rank by ``|score|``, with no tensor of magnitudes in between.

    Returns:
        A list of contiguous bool masks, one per tensor and of its shape, True where kept. Exactly
        ``N - floor(sparsity * N)`` of all N entries are kept. Of equal scores at the edge, those
        that come first are: in the order of the list, then of the row-major position. ``-0.0`` and
        ``0.0`` are equal, infinities are the largest and smallest scores.

    Raises:
        TypeError, ValueError: as :func:`magnitude_threshold`.
    """
    tensors, names = checked(scores, "scores", sparsity)
    masks: list[Tensor] = _back_end(tensors).global_masks(
        tensors, float(sparsity), bool(magnitude), names
    )
    return masks


def checked(
    tensors: Tensor | Sequence[Tensor], argument: str, sparsity: float
) -> tuple[list[Tensor], str]:
    """Checks tensors that a share is taken of, and the share.

    Args:
        tensors: one tensor or a list of tensors.
        argument: how the caller's argument is called.
        sparsity: the share.

    Returns:
        A list of tensors, and their names with ``{}`` where the index goes, for later errors.

    Raises:
        TypeError, ValueError: as :func:`magnitude_threshold`, short of a NaN.
    """
    if isinstance(tensors, Tensor):
        listed, names, pattern = [tensors], [argument], argument
    else:
        names = checks.names_of(tensors, argument)
        listed, pattern = list(tensors), f"{argument}[{{}}]"
    for x, name in zip(listed, names, strict=True):
        checks.floating_tensor(x, name)
    checks.same_dtype_and_device(listed, names)
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be a number from 0 to 1, got {sparsity!r}")
    if all(x.numel() == 0 for x in listed):
        shapes = ", ".join(str(tuple(x.shape)) for x in listed[:3])
        raise ValueError(f"{argument} has no elements at all (shape {shapes}): expected some")
    return listed, pattern


def _back_end(tensors: Sequence[Tensor]) -> Any:
    return back_end(tensors[0].device, reference, cpu, cuda=cuda)
