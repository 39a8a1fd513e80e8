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
    image, why = (batch, 128, 28, 28), "the second stage of an ImageNet ResNet-50"
    tokens = (batch // 2, 197, 768)
    return [
        _case("contiguous", image, why),
        _case("channels_last", image, why),
        _case("tokens", tokens, "the hidden width of a ViT-B, whose neurons are adjacent"),
    ]


def _case(layout: str, shape: tuple[int, ...], reason: str) -> Case:
    channel = 1 if len(shape) == 4 else len(shape) - 1

    def inputs(dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=generator).to(dtype).relu_()
        return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x

    return Case(
        id=f"D1-{layout}",
        suite="activity",
        title=f"dead-neuron rates, {shape}" + ("" if layout == "tokens" else f", {layout}"),
        reason=reason,
        shapes="x".join(map(str, shape)),
        inputs=inputs,
        oracle=lambda x: _eager(x.double(), channel),
        error=largest_difference,
        cost=Cost(operations=0, values=torch.Size(shape).numel()),
        tiny=lambda dtype: torch.ones((2,) * len(shape), dtype=dtype),
        dtypes=("float32", "bfloat16"),
        contenders=(
            *sparsekern_contenders(lambda x: list(sk.dead_neuron_rate(x))),
            Contender(
                "eager_dead_neurons",
                "eager dead-neuron rate",
                lambda x: _eager(x, channel),
                group="eager PyTorch",
            ),
        ),
    )


def _eager(x: Tensor, channel: int) -> list[Tensor]:
    """A maximum per channel and one count: of eight ways the fastest, in all layouts."""
    others = [dim for dim in range(x.dim()) if dim != channel]
    static = (x.amax(others) <= 0).double().mean()
    total = torch.count_nonzero(x <= 0) / x.numel()
    return [static, total - static, total]
