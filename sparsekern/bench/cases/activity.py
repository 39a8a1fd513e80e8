"""Dead-neuron rates of a convolutional activation."""

from __future__ import annotations

import torch
from torch import Tensor

import sparsekern as sk

from ..case import AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..gate import largest_difference


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    batch = 16 if quick else 64
    return [_case(batch, channels_last) for channels_last in (False, True)]


def _case(batch: int, channels_last: bool) -> Case:
    layout = "channels_last" if channels_last else "contiguous"
    form = torch.channels_last if channels_last else torch.contiguous_format

    def inputs(dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, 128, 28, 28, generator=generator).to(dtype)
        return x.relu_().contiguous(memory_format=form)

    return Case(
        id=f"A1-{layout}",
        suite="activity",
        title=f"dead-neuron rates, ({batch}, 128, 28, 28), {layout}",
        reason="the second stage of an ImageNet ResNet-50",
        shapes=f"{batch}x128x28x28",
        inputs=inputs,
        oracle=lambda x: _eager(x.double()),
        error=largest_difference,
        cost=Cost(operations=0, values=batch * 128 * 28 * 28),
        tiny=lambda dtype: torch.ones(2, 3, 4, 4, dtype=dtype),
        dtypes=("float32",),
        contenders=(
            *sparsekern_contenders(lambda x: list(sk.dead_neuron_rate(x))),
            Contender(
                "eager_dead_neurons", "eager dead-neuron rate", _eager, group="eager PyTorch"
            ),
        ),
    )


def _eager(x: Tensor) -> list[Tensor]:
    dead = x <= 0
    static = dead.all(dim=3).all(dim=2).all(dim=0).double().mean()
    total = dead.sum() / dead.numel()
    return [static, total - static, total]
