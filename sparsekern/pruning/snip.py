"""SNIP: single-shot pruning by connection sensitivity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import distributed
from .foresight import Foresight


class SNIP(Foresight):
    """Keeps the weights whose removal would change the loss most, ``|w · ∂L/∂w|``, from the start.

    (Lee, Ajanthan and Torr 2019, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity"; there one batch. Their normalisation does not change the order.)

    Args:
        sparsity, loss, batches, exclude, min_per_layer: see :class:`Foresight`.
    """

    def _scores(self, batches: list[Any]) -> list[Tensor]:
        gradients = self._sum_of_gradients(batches)
        distributed.mean(gradients, self._group)
        return [
            (parameter.detach() * gradient).abs()
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]
