"""The metric of GMP, LTH and ART: the smallest magnitudes are pruned."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from .base import Pruner
from .selection import check_distribution, keep_best


class MagnitudePruner(Pruner):
    """Prunes the weights of smallest magnitude; equal ones from the last position on.

    Args:
        sparsity, exclude, min_per_layer: see :class:`Pruner`.
        distribution: ``"global"``: the smallest over all layers together; ``"uniform"``: each layer
            the same share; ``"erk"``: layers by the Erdős–Rényi kernel.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        distribution: str = "global",
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(sparsity, exclude=exclude, min_per_layer=min_per_layer)
        self.distribution = check_distribution(distribution)

    def _choose(self, kept: int, allowed: list[Tensor]) -> list[Tensor]:
        return keep_best(
            [parameter.detach().abs() for parameter in self._parameters],
            allowed,
            kept,
            distribution=self.distribution,
            min_per_layer=self.min_per_layer,
        )
