"""SET: sparse evolutionary training."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ..ops import checks
from .rst import RST
from .selection import keep_best


class SET(RST):
    """Random masks of which a share moves at the end of every epoch.

    Of each layer the share ζ of the smallest positive weights and the share ζ of the largest
    negative ones is dropped, and as many are grown at random places, among them those just
    dropped. (Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive
    sparse connectivity inspired by network science".) Grown weights begin at 0. A kept weight that
    is 0 counts as positive. A layer that is dense stays so.

    Args:
        sparsity, exclude, min_per_layer: see :class:`Pruner`.
        fraction: ζ.
        epochs: of the whole training: at the end of the last one nothing moves any more. None: at
            the end of each.
        distribution, seed, rescale: see :class:`RST`.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        fraction: float = 0.3,
        epochs: int | None = None,
        distribution: str = "erk",
        seed: int = 0,
        rescale: bool = False,
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(
            sparsity,
            distribution=distribution,
            seed=seed,
            rescale=rescale,
            exclude=exclude,
            min_per_layer=min_per_layer,
        )
        checks.real_numbers(fraction=fraction)
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, got {fraction}")
        if epochs is not None:
            checks.real_numbers(epochs=epochs)
        self.fraction, self.last_epoch = float(fraction), epochs

    def _after_epoch(self) -> None:
        if self.last_epoch is not None and self.epochs >= self.last_epoch:
            return
        growable, counts = self._growable(), self._counts
        remaining = [
            self._drop(parameter.detach(), mask, int(grow.sum()))
            for parameter, mask, grow in zip(self._parameters, self._masks, growable, strict=True)
        ]
        self._set(remaining)
        grown = [
            self._draw(places, count - now)
            for places, count, now in zip(self._growable(), counts, self._counts, strict=True)
        ]
        self._set([mask | new for mask, new in zip(self._masks, grown, strict=True)])

    def _drop(self, weight: Tensor, mask: Tensor, room: int) -> Tensor:
        """The mask without the weights of each sign that are closest to 0."""
        remaining = mask
        for signed in (mask & (weight >= 0), mask & (weight < 0)):
            count = int(signed.sum())
            dropped = min(int(self.fraction * count), room)
            room -= dropped
            (kept,) = keep_best([weight.abs()], [signed], count - dropped)
            remaining = remaining & (kept | ~signed)
        return remaining
