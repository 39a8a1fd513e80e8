"""What masked layers get inside a model, which kernels take it, and how long that lasts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.masked import choice, convolution, cuda, cuda_choice, reference
from ..ops.masked.linear import implementation_for
from ..ops.masked.pattern import SparsityPattern
from ..ops.masked.triton import linear as triton
from .layers import MaskedConv2d, MaskedLinear
from .packed import PackedLinear

MaskedLayer = MaskedLinear | MaskedConv2d | PackedLinear
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 101


@dataclass(frozen=True)
class LayerTimes:
    """Median seconds of a masked layer and of the dense one with its weight, on the same input.

    Attributes:
        forward: of the masked layer, without gradients.
        dense_forward: of the dense one.
        training: of the masked layer, forward and backward, with the gradients that training
            needs of it; None where it needs none.
        dense_training: of the dense one.
    """

    forward: float
    dense_forward: float
    training: float | None = None
    dense_training: float | None = None


@dataclass
class Use:
    """What a layer was called on.

    Attributes:
        input: of the first call; None if there was none.
        needs_input_grad: whether training needs the gradient of that.
        positions: rows or pixels of the results of all calls: how often each weight was used.
    """

    input: Tensor | None = None
    needs_input_grad: bool = False
    positions: int = 0


def weight_shape(layer: MaskedLayer) -> torch.Size:
    """Of the weight, kept or not."""
    return layer.pattern.shape if isinstance(layer, PackedLinear) else layer.weight.shape


def sample_count(input: Any) -> int:
    """The first dimension of the first tensor in a model's input.

    Raises:
        ValueError: if there is none, or no sample in it.
    """
    for value in _arguments(input):
        if isinstance(value, Tensor):
            if value.dim() and len(value):
                return len(value)
            raise ValueError(f"input of shape {tuple(value.shape)} has no samples")
    raise ValueError(f"input holds no tensor: got {type(input).__name__}")


def _arguments(input: Any) -> Sequence[Any]:
    if isinstance(input, dict):
        return list(input.values())
    return input if isinstance(input, tuple) else (input,)


def observe(model: nn.Module, layers: Sequence[MaskedLayer], input: Any) -> dict[MaskedLayer, Use]:
    """Calls the model once, in evaluation mode, and notes what the layers get."""
    uses = {layer: Use() for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        use = uses[layer]  # type: ignore[index]
        channels = output.shape[-3 if isinstance(layer, MaskedConv2d) else -1]
        use.positions += output.numel() // max(1, channels)
        if use.input is None:
            use.input, use.needs_input_grad = inputs[0].detach(), inputs[0].requires_grad

    handles = [layer.register_forward_hook(note) for layer in layers]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.enable_grad():  # which inputs would need a gradient is to be seen
            model.eval()
            model(**input) if isinstance(input, dict) else model(*_arguments(input))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return uses


def kernels(layer: MaskedLayer, x: Tensor) -> tuple[str, str, str]:
    """What computes the forward pass, the gradient of the input and that of the weight."""
    pattern = layer.pattern
    assert isinstance(pattern, SparsityPattern)
    by_mask = isinstance(layer, MaskedLinear)
    implementation = implementation_for(x, pattern, cuda, triton if by_mask else None)
    if implementation is reference:
        return ("reference",) * 3
    if implementation is triton:
        return ("dense",) * 3
    if isinstance(layer, MaskedConv2d):
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        forward, of_input, of_weight = convolution.algorithms(x, layer.weight, pattern, *options)
        return forward, of_input, "dense" if layer.weight_grad == "dense" else of_weight
    if isinstance(layer, PackedLinear) and implementation is cuda:
        return ("unstructured",) * 3
    batch = x.numel() // max(1, x.shape[-1])

    def chosen(part: str) -> str:
        if implementation is cuda and not isinstance(layer, PackedLinear):
            rows = x.reshape(-1, pattern.columns)
            return cuda_choice.here(part, rows, layer.weight, pattern.expected_nnz)
        in_blocks = choice.in_blocks(part, pattern.nnz, pattern.structure)
        sizes = (batch, pattern.rows, pattern.columns, pattern.nnz)
        sparse = choice.here(part, *sizes, x.dtype, in_blocks)
        return "sparse" if sparse else "dense"

    straight_through = isinstance(layer, MaskedLinear) and layer.weight_grad == "dense"
    return chosen("forward"), chosen("input"), "dense" if straight_through else chosen("weight")


def times(layer: MaskedLayer, x: Tensor, needs_input_grad: bool, seconds: float) -> LayerTimes:
    """Times a layer against the dense one of its weight, in about so many seconds."""
    x = x.detach()
    other = layer.to_linear() if isinstance(layer, PackedLinear) else layer

    def dense() -> Tensor:
        if isinstance(other, MaskedConv2d):
            result: Tensor = other._conv_forward(x, other.weight, other.bias)
            return result
        return F.linear(x, other.weight, other.bias)

    def masked() -> Tensor:
        result: Tensor = layer(x)
        return result

    with torch.no_grad():
        forward, dense_forward = _medians(masked, dense, x, seconds / 2)
    trained, dense_trained = (
        [p for p in m.parameters() if p.requires_grad] for m in (layer, other)
    )
    inputs = [x.requires_grad_()] if needs_input_grad else []
    if not trained + inputs:
        return LayerTimes(forward, dense_forward)
    with torch.enable_grad():
        grad = torch.randn_like(masked())
        training, dense_training = _medians(
            lambda: torch.autograd.grad(masked(), trained + inputs, grad),
            lambda: torch.autograd.grad(dense(), dense_trained + inputs, grad),
            x,
            seconds / 2,
        )
    return LayerTimes(forward, dense_forward, training, dense_training)


def _medians(
    first: Callable[[], object], second: Callable[[], object], x: Tensor, seconds: float
) -> tuple[float, float]:
    """Interleaved: drift of the machine hits both alike."""

    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    timed(first), timed(second)  # what is set up once is not counted
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(samples[0]) < _MOST_ROUNDS:
        if len(samples[0]) >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        samples[0].append(timed(first))
        samples[1].append(timed(second))
    return statistics.median(samples[0]), statistics.median(samples[1])
