"""Selection in plain PyTorch: everything concatenated and sorted; the definition and oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def removed_count(sparsity: float, total: int) -> int:
    """How many of ``total`` entries a sparsity removes: ``floor(sparsity * total)``."""
    return math.floor(sparsity * total)


def magnitude_threshold(tensors: Sequence[Tensor], sparsity: float, names: str) -> Tensor:
    """See :func:`sparsekern.magnitude_threshold`; arguments are checked but for NaN."""
    refuse_nan(tensors, names)
    magnitudes = torch.cat([x.detach().flatten() for x in tensors]).abs()
    rank = min(removed_count(sparsity, len(magnitudes)), len(magnitudes) - 1)
    if torch.are_deterministic_algorithms_enabled():  # kthvalue refuses on GPUs, for its index
        return magnitudes.sort().values[rank]
    return magnitudes.kthvalue(rank + 1).values


def global_masks(
    tensors: Sequence[Tensor], sparsity: float, magnitude: bool, names: str
) -> list[Tensor]:
    """See :func:`sparsekern.global_masks`; arguments are checked but for NaN."""
    refuse_nan(tensors, names)
    scores = torch.cat([x.detach().flatten() for x in tensors])
    if magnitude:
        scores = scores.abs()
    best_first = scores.sort(descending=True, stable=True).indices
    kept = best_first[: len(scores) - removed_count(sparsity, len(scores))]
    keep = torch.zeros_like(scores, dtype=torch.bool).scatter(0, kept, True)
    masks = keep.split([x.numel() for x in tensors])
    return [mask.reshape(x.shape) for mask, x in zip(masks, tensors, strict=True)]


def refuse_nan(tensors: Sequence[Tensor], names: str) -> None:
    """Names the first tensor with a NaN, where looking costs no device sync.

    Raises:
        ValueError: if there is one.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return  # there is nothing to look at yet
    for index, x in enumerate(tensors):
        if x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter) and x.isnan().any():
            raise nan_error(x, names.format(index))


def nan_error(x: Tensor, name: str) -> ValueError:
    """The error about a NaN in the tensor x."""
    return ValueError(f"{name} of shape {tuple(x.shape)} holds NaN, which has no rank")
