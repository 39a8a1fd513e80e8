"""GraSP: gradient signal preservation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import distributed
from .foresight import Foresight


class GraSP(Foresight):
    """Keeps the weights whose removal would lower the gradient's norm most, from the start.

    The score of a weight is ``S(-θ) = -θ ⊙ Hg``, H the Hessian and g the gradient of the loss: by
    how much its removal raises ``‖g‖²``, to first order and halved. The highest are pruned.
    (Wang, Zhang and Grosse 2020, "Picking Winning Tickets Before Training by Preserving Gradient
    Flow".) Divide the logits in ``loss`` by a temperature, in their code 200, for the
    Hessian at large ones.

    Args:
        sparsity, loss, batches, exclude, min_per_layer: see :class:`Foresight`.
    """

    def _scores(self, batches: list[Any]) -> list[Tensor]:
        gradients = self._sum_of_gradients(batches)
        distributed.mean(gradients, self._group)
        products = [torch.zeros_like(parameter) for parameter in self._parameters]
        for batch in batches:  # one graph at a time
            again = self._gradients(batch, create_graph=True)
            along = sum((a * g).sum() for a, g in zip(again, gradients, strict=True))
            assert isinstance(along, Tensor)
            curvature = torch.autograd.grad(
                along, self._parameters, allow_unused=True, materialize_grads=True
            )
            for sum_, part in zip(products, curvature, strict=True):
                sum_ += part
        distributed.mean(products, self._group)
        return [
            parameter.detach() * product
            for parameter, product in zip(self._parameters, products, strict=True)
        ]
