"""What SNIP and GraSP share: gradients of some batches, before training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..dispatch import backend
from .base import Pruner
from .selection import keep_best

Loss = Callable[[nn.Module, Any], Tensor]


class Foresight(Pruner):
    """Prunes once, when it is attached, by scores from the gradients of some batches.

    The model is used as it is (in training mode, normally); its buffers, such as the statistics of
    batch norm, are put back, and ``.grad`` is not touched. With a DDP model the gradients are
    averaged over the ranks, each with its own batches.

    Args:
        sparsity, exclude, min_per_layer: see :class:`Pruner`.
        loss: from the unwrapped model and a batch to the loss, a scalar.
        batches: what ``loss`` is given one by one; read when it is attached.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        loss: Loss,
        batches: Iterable[Any],
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(sparsity, exclude=exclude, min_per_layer=min_per_layer)
        if not callable(loss):
            raise TypeError(f"loss must be a function of model and batch, got {loss!r:.80}")
        self._loss, self._batches = loss, batches

    @abstractmethod
    def _scores(self, batches: list[Any]) -> list[Tensor]:
        """A score for each weight; the highest are kept."""

    def _start(self) -> None:
        self._prune_to(self._final)
        self._batches = ()

    def _choose(self, kept: int, allowed: list[Tensor]) -> list[Tensor]:
        if self._started:  # for a tandem that finds nothing more to prune
            scores = [parameter.detach().abs() for parameter in self._parameters]
        else:
            scores = self._first_scores()
        return keep_best(scores, allowed, kept, min_per_layer=self.min_per_layer)

    def _first_scores(self) -> list[Tensor]:
        batches = list(self._batches)
        if not batches:
            raise ValueError("batches is empty: expected at least one to compute gradients of")
        buffers = [(buffer, buffer.clone()) for buffer in self._core.buffers()]
        try:
            # Compiled kernels cannot be differentiated twice, nor can fused attention; plain
            # PyTorch can.
            with torch.enable_grad(), backend("reference"), sdpa_kernel(SDPBackend.MATH):
                return self._scores(batches)
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    def _gradients(self, batch: Any, create_graph: bool = False) -> list[Tensor]:
        """The gradient of a batch's loss for each weight; 0 where it has no influence."""
        loss = self._loss(self._core, batch)
        if loss.numel() != 1:
            raise ValueError(
                f"loss must return a scalar, got a tensor of shape {tuple(loss.shape)}"
            )
        return list(
            torch.autograd.grad(
                loss,
                self._parameters,
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
        )

    def _sum_of_gradients(self, batches: list[Any]) -> list[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in self._parameters]
        for batch in batches:
            for sum_, gradient in zip(total, self._gradients(batch), strict=True):
                sum_ += gradient
        return total
