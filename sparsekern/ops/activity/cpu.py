"""Dead-neuron rates on the compiled core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import native
from ..registry import DTYPE_CODES, register, run

_FAMILY = "activity"


def dead_neuron_rate(
    activation: Tensor, channel_dim: int, *, family: str = _FAMILY
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`sparsekern.dead_neuron_rate`; arguments are checked.

    The operator is that of a family: ``"activity"``, or another that follows its schema.
    """
    return run(f"{family}_dead_neurons", activation, channel_dim)  # type: ignore[no-any-return]


def as_runs(activation: Tensor, channel_dim: int) -> tuple[Tensor, int, int, int]:
    """The activation as a contiguous array ``(outer, channels, inner)``, and these sizes."""
    x = activation.resolve_neg() if activation.is_neg() else activation
    channels = x.shape[channel_dim]
    if not x.is_contiguous():
        # With channels last, as a channels_last tensor already lies in memory; else one copy.
        x, channel_dim = x.movedim(channel_dim, -1).contiguous(), x.dim() - 1
    return x, math.prod(x.shape[:channel_dim]), channels, math.prod(x.shape[channel_dim + 1 :])


def _dead_neurons(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    x, outer, channels, inner = as_runs(activation, channel_dim)
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


def fake(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Empty results of the operator."""
    static, dynamic, total = (activation.new_empty((), dtype=torch.float32) for _ in range(3))
    return static, dynamic, total


SCHEMA = "(Tensor activation, int channel_dim) -> (Tensor, Tensor, Tensor)"
register(f"{_FAMILY}_dead_neurons", SCHEMA, _dead_neurons, fake)
