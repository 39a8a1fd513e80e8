"""RST: random static masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from .base import Pruner
from .selection import check_distribution, layer_counts


class RST(Pruner):
    """Random sparse training: each layer keeps weights drawn at random, from the first step on.

    How many a layer keeps: ``"erk"``, in proportion to the sum of its dimensions (the
    Erdős–Rényi kernel of Mocanu et al. 2018, "Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science", and Evci et al. 2020, "Rigging the
    Lottery"); ``"uniform"``: each the same share. (Liu et al. 2022, "The Unreasonable
    Effectiveness of Random Pruning".)

    Args:
        sparsity, exclude, min_per_layer: see :class:`Pruner`.
        distribution: ``"erk"`` or ``"uniform"``.
        seed: of the draw, which does not touch torch's global random state.
        rescale: whether to multiply each layer's weights by ``1/√density`` when attached, so that
            what is left keeps the variance of the layer's output. Initialisations assume dense
            layers: without it, and without normalisation, signals die out at high sparsity. (In
            the sense of Evci et al. 2022, "Gradient Flow in Sparse Neural Networks and How Lottery
            Tickets Win", who do it for each neuron.) For freshly initialised models only.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        distribution: str = "erk",
        seed: int = 0,
        rescale: bool = False,
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(sparsity, exclude=exclude, min_per_layer=min_per_layer)
        self.distribution = check_distribution(distribution, ("erk", "uniform"))
        self.rescale = rescale
        checks.whole_numbers(seed=seed)
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def _start(self) -> None:
        self._prune_to(self._final)
        if self.rescale:
            for parameter, kept in zip(self._parameters, self._counts, strict=True):
                parameter.mul_((parameter.numel() / max(kept, 1)) ** 0.5)

    def _choose(self, kept: int, allowed: list[Tensor]) -> list[Tensor]:
        shapes = [mask.shape for mask in allowed]
        available = [int(mask.sum()) for mask in allowed]
        counts = layer_counts(shapes, kept, self.distribution, available, self.min_per_layer)
        return [self._draw(mask, count) for mask, count in zip(allowed, counts, strict=True)]

    def _draw(self, among: Tensor, count: int) -> Tensor:
        """A mask of ``count`` of the entries where ``among`` is True, all equally likely."""
        places = among.cpu().flatten().nonzero().squeeze(1)
        drawn = places[torch.randperm(len(places), generator=self._generator)[:count]]
        mask = torch.zeros(among.numel(), dtype=torch.bool)
        mask[drawn] = True
        return mask.view(among.shape).to(among.device)

    def _own_state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
