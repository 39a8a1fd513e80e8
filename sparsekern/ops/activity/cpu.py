"""Dead-neuron rates on the compiled core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import native
from ..registry import DTYPE_CODES, register, run


def dead_neuron_rate(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`sparsekern.dead_neuron_rate`; arguments are checked."""
    return run("activity_dead_neurons", activation, channel_dim)  # type: ignore[no-any-return]


def _dead_neurons(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    x = activation.resolve_neg() if activation.is_neg() else activation
    channels = x.shape[channel_dim]
    if not x.is_contiguous():
        # With channels last, as a channels_last tensor already lies in memory; else one copy.
        x, channel_dim = x.movedim(channel_dim, -1).contiguous(), x.dim() - 1
    outer, inner = math.prod(x.shape[:channel_dim]), math.prod(x.shape[channel_dim + 1 :])
    dead_channels, dead_entries = native.cpu().dead_counts(
        x.data_ptr(), DTYPE_CODES[x.dtype], outer, channels, inner, torch.get_num_threads()
    )
    samples = outer * inner
    entries = samples * channels
    static, dynamic, total = (
        torch.tensor(value, dtype=torch.float32, device="cpu")
        for value in (
            dead_channels / channels,
            (dead_entries - dead_channels * samples) / entries,
            dead_entries / entries,
        )
    )
    return static, dynamic, total


def _fake(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    static, dynamic, total = (activation.new_empty((), dtype=torch.float32) for _ in range(3))
    return static, dynamic, total


register(
    "activity_dead_neurons",
    "(Tensor activation, int channel_dim) -> (Tensor, Tensor, Tensor)",
    _dead_neurons,
    _fake,
)
