"""Dead-neuron rates on the CUDA kernels: counts are made into rates on the device."""

from __future__ import annotations

import functools

from torch import Tensor

from ... import native
from ..launching import DEVICES, scratch, where
from ..registry import DTYPE_CODES, register
from . import cpu

_FAMILY = "activity_cuda"
_MOST_INNER = 2**31  # positions, which the kernel counts in 32 bits

dead_neuron_rate = functools.partial(cpu.dead_neuron_rate, family=_FAMILY)


def _dead_neurons(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    x, outer, channels, inner = cpu.as_runs(activation, channel_dim)
    if inner >= _MOST_INNER:
        raise ValueError(
            f"activation of shape {tuple(activation.shape)} has {inner} positions: expected less "
            f"than {_MOST_INNER}"
        )
    kernels = native.cuda()
    memory = scratch(kernels.dead_bytes(channels), x.device)
    # Three, for results share no memory, and a copy of each would be a launch.
    rates = cpu.fake(x, channel_dim)
    kernels.dead_rates(
        where(x),
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        outer,
        channels,
        inner,
        memory.data_ptr(),
        [rate.data_ptr() for rate in rates],
    )
    return rates


register(f"{_FAMILY}_dead_neurons", cpu.SCHEMA, _dead_neurons, cpu.fake, devices=DEVICES)
