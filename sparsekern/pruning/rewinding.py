"""Snapshots of a model's parameters and buffers, for methods that go back to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..nn.layers import MaskedConv2d, MaskedLinear


class Snapshot:
    """All parameters and buffers of a model as they were, but for the masks of masked layers."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Remembers the model as it is."""
        self.tensors = {name: tensor.clone() for name, tensor in _tensors_of(model)}

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Writes what was remembered back, in place, pruned weights included."""
        for name, tensor in _tensors_of(model):
            tensor.copy_(self.tensors[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what another snapshot's ``tensors`` held."""
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    masks = {m.mask for m in model.modules() if isinstance(m, MaskedLinear | MaskedConv2d)}
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()
    for name, buffer in model.named_buffers():
        if buffer not in masks:
            yield name, buffer
