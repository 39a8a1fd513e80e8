"""Penalties that make networks sparse: HyperSparse and layer sparsity."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..registry import back_end
from ..selection import checked
from . import cpu, cuda, reference

__all__ = [
    "hypersparse_backward_",
    "hypersparse_loss",
    "layer_sparsity_loss",
    "layer_sparsity_prox_",
]


def hypersparse_loss(weights: Tensor | Sequence[Tensor], sparsity: float) -> Tensor:
    """The HyperSparse loss, which pushes the weights below a global threshold towards zero.

    ``L = Σ_i (|w_i| Σ_j t_j / A - |w_i|)`` over all weights together, with
    ``t = tanh(s |w|)``, ``A`` the value of ``Σ_j t_j`` held constant, and
    ``s = artanh(1/√3) / |w|_(k)``, where ``|w|_(k)`` is the threshold of
    :func:`sparsekern.magnitude_threshold`, held constant too. The value is always 0; what matters
    is its gradient, ``∂L/∂w_i = sign(w_i) s sech²(s |w_i|) Σ|w| / A``: large for weights below the
    threshold, vanishing for those far above. (Glandorf, Kaiser and Rosenhahn 2023, "HyperSparse
    Neural Networks: Shifting Exploration to Exploitation through Adaptive Regularization".)

    Args:
        weights: one tensor or a list of tensors of any shapes, without biases and normalisation;
            float32, float64, bfloat16 or float16, the same dtype and device in all. Autocast
            changes nothing.
        sparsity: the share of weights aimed at, from 0 to 1.

    Returns:
        A scalar 0, float64 for float64 weights, else float32. The gradient is 0 at exact zeros, so
        that pruned weights are not pushed, and 0 everywhere where the threshold itself is 0: that
        share is zero already. On the compiled core it cannot be differentiated again.

    Raises:
        TypeError, ValueError: as :func:`sparsekern.magnitude_threshold`; ValueError for infinite
            weights too.
    """
    tensors, names = checked(weights, "weights", sparsity)
    loss: Tensor = _back_end(tensors).hypersparse_loss(tensors, float(sparsity), names)
    return loss


@torch.no_grad()
def hypersparse_backward_(
    weights: Tensor | Sequence[Tensor], sparsity: float, strength: float = 1.0
) -> None:
    """Adds the gradient of :func:`hypersparse_loss` to that of each weight, in place.

    What ``(strength * hypersparse_loss(weights, sparsity)).backward()`` leaves in ``.grad``, with
    no second gradient of all weights in between: call it after the ``backward`` of the task's loss
    and before the optimizer's step. Autograd takes no part, so hooks on gradients do not see it;
    with data-parallel training every rank adds the same to the averaged gradient.

    Args:
        weights: as in :func:`hypersparse_loss`, leaves; those that need no gradient get none, and
            take part in the threshold and the sums all the same.
        sparsity: as there.
        strength: a factor; finite. With gradients that a scaler has scaled, times its scale.

    Raises:
        TypeError, ValueError: as :func:`hypersparse_loss`; ValueError for a strength that is not
            finite, or a weight that is no leaf.
    """
    tensors, names = checked(weights, "weights", sparsity)
    if not math.isfinite(checks.number(strength, "strength")):
        raise ValueError(f"strength must be finite, got {strength}")
    for index, w in enumerate(tensors):
        if w.requires_grad and not w.is_leaf:
            raise ValueError(
                f"{names.format(index)} is the result of an operation: expected a leaf, such as a "
                "parameter, whose gradient is kept"
            )
    _back_end(tensors).hypersparse_backward_(tensors, float(sparsity), float(strength), names)


def layer_sparsity_loss(
    weights: Tensor | Sequence[Tensor], strengths: float | Sequence[float] = 1.0
) -> Tensor:
    """The layer-sparsity regulariser, ``Σ_j λ_j ‖min(0, W_j)‖_F``.

    A layer without negative weights between activations that are the identity on [0, ∞) can be
    merged into the next. In the sense of Hebiri and Lederer 2020, "Layer Sparsity in Neural
    Networks": pass the inner weight matrices of the network, not the first and not the last.

    Args:
        weights: one tensor or a list of tensors of any shapes; float32, float64, bfloat16 or
            float16, the same dtype and device in all. Autocast changes nothing.
        strengths: λ, one number for all or one per tensor; finite and not negative.

    Returns:
        A scalar, float64 for float64 weights, else float32. The gradient of a layer is
        ``λ min(0, W) / ‖min(0, W)‖_F``, and 0 where nothing is negative. On the compiled core it
        cannot be differentiated again.

    Raises:
        TypeError: for something else than floating-point tensors of one dtype.
        ValueError: for an empty list, different devices, strengths that are negative, not finite
            or of another number than the weights, or weights that are not finite (the error names
            the tensor; told on the CPU only, for looking would stall any other device).
    """
    tensors, names = _listed(weights)
    factors = _strengths(strengths, len(tensors))
    loss: Tensor = _back_end(tensors).layer_sparsity_loss(tensors, factors, names)
    return loss


@torch.no_grad()
def layer_sparsity_prox_(
    weights: Tensor | Sequence[Tensor], strengths: float | Sequence[float] = 1.0
) -> None:
    """The proximal step of layer sparsity, in place: ``W_j <- prox(W_j)`` of ``t_j ‖min(0, ·)‖_F``.

    Positive entries stay, and the negative ones of a layer shrink together, by the factor
    ``max(0, 1 - t_j / ‖min(0, W_j)‖_F)``: a whole layer becomes non-negative at once. After a
    gradient step of the loss with step size η this is the step of proximal gradient descent on the
    loss plus :func:`layer_sparsity_loss`, with ``t = η λ``.

    Args:
        weights: as in :func:`layer_sparsity_loss`; they are changed, as an optimizer does it.
        strengths: t, one number for all or one per tensor; finite and not negative.

    Raises:
        TypeError, ValueError: as :func:`layer_sparsity_loss`, with no tensor changed.
    """
    tensors, names = _listed(weights)
    factors = _strengths(strengths, len(tensors))
    _back_end(tensors).layer_sparsity_prox_(tensors, factors, names)


def _listed(weights: Tensor | Sequence[Tensor]) -> tuple[list[Tensor], str]:
    if isinstance(weights, Tensor):
        tensors, names, pattern = [weights], ["weights"], "weights"
    else:
        names = checks.names_of(weights, "weights")
        tensors, pattern = list(weights), "weights[{}]"
    for x, name in zip(tensors, names, strict=True):
        checks.floating_tensor(x, name)
    checks.same_dtype_and_device(tensors, names)
    return tensors, pattern


def _strengths(strengths: float | Sequence[float], count: int) -> list[float]:
    if isinstance(strengths, numbers.Real):
        values = [float(strengths)] * count
    elif isinstance(strengths, Sequence) and not isinstance(strengths, str):
        values = [checks.number(x, f"strengths[{index}]") for index, x in enumerate(strengths)]
        if len(values) != count:
            raise ValueError(
                f"strengths has {len(values)} entries and weights has {count}: expected one number "
                "for all or one per tensor"
            )
    else:
        kind = type(strengths).__name__
        raise TypeError(f"strengths must be a number or a list of numbers, got {kind}")
    for strength in values:
        if not 0 <= strength < math.inf:
            raise ValueError(f"strengths must be finite and not negative, got {strength}")
    return values


def _back_end(tensors: Sequence[Tensor]) -> Any:
    return back_end(tensors[0].device, reference, cpu, cuda=cuda)
