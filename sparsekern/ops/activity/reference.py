"""Dead-neuron rates in plain PyTorch: the definition, and the fallback everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def dead_neuron_rate(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`sparsekern.dead_neuron_rate`; arguments are checked."""
    inactive = (activation.detach() <= 0).movedim(channel_dim, -1).flatten(0, -2)  # (inputs, C)
    samples, channels = inactive.shape
    dead_channels = inactive.all(dim=0).sum()
    dead_entries = inactive.sum()
    # The difference is taken of counts, which are exact.
    dynamic = dead_entries - dead_channels * samples
    return (
        (dead_channels / channels).to(torch.float32),
        (dynamic / (samples * channels)).to(torch.float32),
        (dead_entries / (samples * channels)).to(torch.float32),
    )
