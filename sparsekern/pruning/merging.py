"""Merging of layers that layer sparsity has made non-negative: the same function, fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn.conversion import to_dense
from ..nn.wrappers import unwrap
from .merge_graph import Candidate, candidates
from .merge_products import merged_conv2d, merged_linear


@dataclass
class MergeReport:
    """What :func:`merge_layers` did.

    Attributes:
        merged: the layers that are gone, each with the one that took it over, in that order.
        kept: layer -> why it stays.
        parameters_before: how many parameters the model had.
        parameters_after: how many it has.
        error: with an example, the largest difference between the outputs before and after, over
            the largest output; else None.
    """

    merged: list[tuple[str, str]] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    parameters_before: int = 0
    parameters_after: int = 0
    error: float | None = None

    def __str__(self) -> str:
        lines = [f"{name} was merged into {into}" for name, into in self.merged]
        lines += [f"{name} stays: {reason}" for name, reason in self.kept.items()]
        lines.append(f"parameters: {self.parameters_before} before, {self.parameters_after} after")
        if self.error is not None:
            lines.append(f"relative difference of the outputs: {self.error:.1e}")
        return "\n".join(lines)


class Merged(NamedTuple):
    """The smaller model, and what was done."""

    model: nn.Module
    report: MergeReport


def merge_layers(
    model: nn.Module,
    *,
    nonnegative_input: bool = False,
    allow_growth: bool = False,
    example: Tensor | None = None,
    refit: Callable[[nn.Module], object] | None = None,
) -> Merged:
    """Merges layers that are non-negative, behind a non-negative input, into the next one.

    For ``h, W, b ≥ 0`` and an activation that is the identity on [0, ∞),
    ``V φ(W h + b) + c = (V W) h + (V b + c)`` exactly. (In the sense of Hebiri and Lederer 2020,
    "Layer Sparsity in Neural Networks"; :class:`sparsekern.regularizers.LayerSparsity` makes
    layers so.) The model's graph is followed symbolically with torch.fx, to find layers

    - that are ``nn.Linear`` or ``nn.Conv2d`` (masked ones of :mod:`sparsekern.nn` are made dense),
      used once, without hooks, groups or tied weights;
    - whose input cannot be negative: it comes from a ReLU or sigmoid, through pooling, sums,
      reshaping and the like;
    - without negative weights and biases, batch norm behind them folded in as in evaluation;
    - followed by ReLU, LeakyReLU, PReLU, ELU or CELU, and then by a layer of the same kind, and by
      nothing else. A convolution that pads can only take a 1x1 layer without bias, for elsewhere
      the border would differ.

    In their places ``nn.Identity`` stays, so that names and code go on working; the next layer has
    new parameters: make a new optimizer. Chains are merged one by one. The outputs in evaluation
    mode are the same but for rounding (products are taken in float64).

    Args:
        model: the network, wrapped or not; it is not changed.
        nonnegative_input: whether the model's own input is known to be so (images in [0, 1]).
        allow_growth: whether a merged layer may have more weights than the two had.
        example: an input to compare the outputs on, before and after. A model whose forward looks
            at shapes is followed as it is for the example's.
        refit: called with the smaller model, to train it on.

    Returns:
        The smaller model, and a :class:`MergeReport`.

    Raises:
        ValueError: if the model cannot be traced.
    """
    smaller = to_dense(copy.deepcopy(unwrap(model)))
    report = MergeReport(parameters_before=_parameters(smaller))
    expected = None if example is None else _output(smaller, example)
    merging = True
    while merging:
        merging, report.kept = False, {}
        for name, found in candidates(smaller, nonnegative_input, allow_growth, example):
            if isinstance(found, str):
                report.kept[name] = found
                continue
            _merge(smaller, found)
            report.merged.append((name, found.into))
            merging = True  # the graph is another now
            break
    report.parameters_after = _parameters(smaller)
    if example is not None and expected is not None:
        difference = (_output(smaller, example) - expected).abs().max()
        report.error = (difference / expected.abs().max().clamp(min=1e-30)).item()
    if refit is not None:
        refit(smaller)
    return Merged(smaller, report)


def _merge(model: nn.Module, candidate: Candidate) -> None:
    first, second = model.get_submodule(candidate.name), model.get_submodule(candidate.into)
    layer: nn.Module
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        layer = merged_linear(candidate.weight, candidate.bias, second)
    else:
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        layer = merged_conv2d(first, candidate.weight, candidate.bias, second)
    _replace(model, candidate.into, layer)
    for name in (candidate.name, candidate.norm, candidate.activation, *candidate.between):
        if name is not None:
            _replace(model, name, nn.Identity().train(second.training))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@torch.no_grad()
def _output(model: nn.Module, example: Tensor) -> Tensor:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    output: Tensor = model(example)
    for module, training in modes.items():
        module.training = training
    return output


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
