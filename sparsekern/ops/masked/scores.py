"""OptG's step on one weight: scores moved by W⊙g, then W and M⊙g left for its optimizer.

Both products are made here and not as a layer's product is written: gradients are accumulated,
clipped, reduced over processes and unscaled before they are what g is, and two results would be
written and read again where g alone is now.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def step_(
    weight: Tensor,
    grad: Tensor,
    hidden: Tensor,
    removed: Tensor | None,
    velocity: Tensor,
    score: Tensor,
    momentum: float,
    rate: float | Tensor,
    scale: Tensor | None = None,
) -> None:
    """``velocity = momentum velocity + W⊙g``, ``score -= rate velocity``; W whole, g masked.

    In one pass by Triton where it runs and all lie in memory in the same order: of the 25 readings
    and writings of plain PyTorch 9 are left, and what is written to W and g are removed entries.

    Args:
        weight: 0 where removed; becomes W.
        grad: g; becomes M⊙g.
        hidden: W where it is removed, of the weight's dtype.
        removed: bool, or None where nothing is.
        velocity: of the scores, float32 or float64.
        score: of the same dtype.
        momentum: of the scores.
        rate: their learning rate.
        scale: that g is still multiplied by, or None.
    """
    tensors = [weight, grad, hidden, velocity, score, *([] if removed is None else [removed])]
    if scale is None and isinstance(rate, float) and _is_fused(tensors):
        from .triton import calls

        calls.step_(weight, grad, hidden, removed, velocity, score, momentum, rate)
        return
    step_by_torch_(weight, grad, hidden, removed, velocity, score, momentum, rate, scale)


def step_by_torch_(
    weight: Tensor,
    grad: Tensor,
    hidden: Tensor,
    removed: Tensor | None,
    velocity: Tensor,
    score: Tensor,
    momentum: float,
    rate: float | Tensor,
    scale: Tensor | None = None,
) -> None:
    """:func:`step_` in plain PyTorch."""
    whole = weight if removed is None else torch.where(removed, hidden, weight)
    push = whole.to(score.dtype) * grad
    if scale is not None:
        push = push / scale
    velocity.mul_(momentum).add_(push)
    score.sub_(velocity * rate)
    if removed is not None:
        weight.copy_(whole)
        grad.masked_fill_(removed, 0)


def _is_fused(tensors: list[Tensor]) -> bool:
    weight, grad, hidden, velocity = tensors[:4]
    return (
        velocity.dtype == torch.float32
        and all(t.dtype in _DTYPES for t in (weight, grad, hidden))
        and weight.numel() > 0
        and dispatch.runs_triton_kernels(weight.device)
        and all(t.device == weight.device and t.stride() == weight.stride() for t in tensors)
        and (
            weight.is_contiguous()
            or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))
        )
    )
