"""Penalties in plain PyTorch: the definition, the float64 oracle, and the fallback everywhere.

Autocast is off inside. Narrow weights are widened to the accumulation dtype; sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import accumulation_dtype, sum_dtype, without_autocast
from ..selection import reference as selection

# Where tanh bends most, and where the threshold is put: the zero of its third derivative.
BEND = math.atanh(1 / math.sqrt(3))


def hypersparse_loss(weights: Sequence[Tensor], sparsity: float, names: str) -> Tensor:
    """See :func:`sparsekern.hypersparse_loss`; arguments are checked but for values."""
    refuse_infinite(weights, names)
    with without_autocast(weights[0]):
        return _hypersparse_loss(weights, sparsity, names)


def _hypersparse_loss(weights: Sequence[Tensor], sparsity: float, names: str) -> Tensor:
    dtype, wide = accumulation_dtype(weights[0].dtype), sum_dtype(weights[0])
    threshold = selection.magnitude_threshold(weights, sparsity, names).to(dtype)
    scale = BEND / threshold
    # A threshold of 0, or so small that its inverse is none: nothing is left to push.
    reached = ~torch.isfinite(scale)
    scale = torch.where(reached, 0, scale)
    size = torch.cat([w.flatten() for w in weights]).to(dtype).abs()
    bent = torch.tanh(scale * size).sum(dtype=wide)
    total = size.sum(dtype=wide)
    constant = torch.where(reached, 1, bent.detach())
    loss = torch.where(reached, 0, total * (bent / constant) - total)
    return loss.to(dtype)


def hypersparse_backward_(
    weights: Sequence[Tensor], sparsity: float, strength: float, names: str
) -> None:
    """See :func:`sparsekern.hypersparse_backward_`; arguments are checked but for values."""
    leaves = list(dict.fromkeys(w for w in weights if w.requires_grad))  # once if listed twice
    if not leaves:
        return
    with torch.enable_grad():
        loss = strength * hypersparse_loss(weights, sparsity, names)
    for w, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        add_gradient(w, gradient)


def add_gradient(w: Tensor, gradient: Tensor) -> None:
    """Adds to the gradient of a leaf, or becomes it."""
    if w.grad is None:
        w.grad = gradient
    else:
        w.grad.add_(gradient)


def layer_sparsity_loss(
    weights: Sequence[Tensor], strengths: Sequence[float], names: str
) -> Tensor:
    """See :func:`sparsekern.layer_sparsity_loss`; arguments are checked but for values."""
    refuse_infinite(weights, names)
    with without_autocast(weights[0]):
        norms = [s * _negative_norm(w) for w, s in zip(weights, strengths, strict=True)]
        return torch.stack(norms).sum().to(accumulation_dtype(weights[0].dtype))


def _negative_norm(w: Tensor) -> Tensor:
    """‖min(0, W)‖_F in the sum dtype, with gradient 0 where nothing is negative."""
    negative = w.to(sum_dtype(w)).clamp(max=0)
    if negative.numel() == 0:
        return negative.sum()
    # Scaled first, so that neither tiny nor huge weights leave the range of floats when squared.
    peak = negative.detach().abs().amax()
    is_zero = peak == 0
    squares = (negative / torch.where(is_zero, 1, peak)).square().sum()
    return peak * torch.where(is_zero, 0, torch.where(is_zero, 1, squares).sqrt())


def layer_sparsity_prox_(weights: Sequence[Tensor], strengths: Sequence[float], names: str) -> None:
    """See :func:`sparsekern.layer_sparsity_prox_`; arguments are checked but for values."""
    refuse_infinite(weights, names)
    with without_autocast(weights[0]):
        for w, step in zip(weights, strengths, strict=True):
            norm = _negative_norm(w)
            kept = (1 - step / torch.where(norm == 0, 1, norm)).clamp(min=0)
            shrunk = w.to(kept.dtype) * kept
            w.copy_(torch.where(w < 0, shrunk.to(w.dtype), w))


def refuse_infinite(tensors: Sequence[Tensor], names: str) -> None:
    """Names the first tensor that is not finite, where looking costs no device sync.

    Raises:
        ValueError: if there is one.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return  # there is nothing to look at yet
    for index, x in enumerate(tensors):
        if x.device.type != "cpu" or type(x) not in (Tensor, torch.nn.Parameter):
            continue
        if not torch.isfinite(x.detach()).all():
            raise not_finite(x, names.format(index))


def not_finite(x: Tensor, name: str) -> ValueError:
    """The error about a NaN or an infinity in the tensor x."""
    return ValueError(
        f"{name} of shape {tuple(x.shape)} holds values that are not finite (NaN or infinity)"
    )
