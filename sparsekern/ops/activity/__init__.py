"""Activity of neurons: how many are dead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..registry import back_end
from . import cpu, cuda, reference

__all__ = ["DeadNeuronRate", "dead_neuron_rate"]


class DeadNeuronRate(NamedTuple):
    """Shares of dead neurons, each a float32 scalar on the activation's device.

    Attributes:
        static: the share of neurons that are at or below 0 for all inputs.
        dynamic: ``total - static``: what neurons that are dead for some inputs only add.
        total: the share of (input, neuron) pairs at or below 0.
    """

    static: Tensor
    dynamic: Tensor
    total: Tensor


def dead_neuron_rate(activation: Tensor, *, channel_dim: int | None = None) -> DeadNeuronRate:
    """The static, dynamic and total dead-neuron rate of a layer's activation.

    A neuron is one channel; its inputs are the samples and, where there are any, the positions:
    ``static = mean_c[all_n a <= 0]``, ``total = mean_(n,c)[a <= 0]``, ``dynamic = total - static``.
    In the sense of Liu et al. 2022, "AP: Selective Activation for De-sparsifying Pruned Neural
    Networks". Give it what comes out of the ReLU, or what goes in.

    Args:
        activation: ``(B, C)``, ``(B, T, C)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``, in any
            memory format; float32, float64, bfloat16 or float16. NaN is not dead.
        channel_dim: the dimension of neurons where it is another than the last of up to three
            dimensions and the second of four or more: -1 for ``(B, H, W, C)``, 1 for ``(B, C, L)``.

    Returns:
        Three scalars that carry no gradient: ``static``, ``dynamic``, ``total``.

    Raises:
        TypeError: for something else than a floating-point tensor.
        ValueError: for fewer than two dimensions, no entries at all, or a channel_dim that the
            activation does not have.
    """
    checks.floating_tensor(activation, "activation")
    shape, dims = tuple(activation.shape), activation.dim()
    if dims < 2:
        raise ValueError(f"activation must have at least two dimensions, got shape {shape}")
    if channel_dim is None:
        channel_dim = dims - 1 if dims <= 3 else 1
    if not isinstance(channel_dim, int) or not -dims <= channel_dim < dims:
        raise ValueError(
            f"channel_dim must be a dimension of the activation of shape {shape}, "
            f"got {channel_dim!r}"
        )
    if activation.numel() == 0:
        raise ValueError(f"activation of shape {shape} has no entries: expected some")
    module = back_end(activation.device, reference, cpu, cuda=cuda)
    with torch.no_grad():
        return DeadNeuronRate(*module.dead_neuron_rate(activation, channel_dim % dims))
