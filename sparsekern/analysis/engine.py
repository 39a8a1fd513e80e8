"""What the two ways of adding up a data set have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .taps import Key


@dataclass(frozen=True)
class Outcome:
    """What an engine gives at the end, over all ranks.

    Attributes:
        matrix: ``(rows, columns)`` CKA, float64.
        selves: HSIC of each row's and each column's layer with itself; 0 where a layer has no
            variation, NaN where its features were not finite.
        samples: of all ranks.
        batches: of all ranks.
        pairs: dimension of the space of centred Gram matrices, ``Σ n (n - 3) / 2``.
        standard_error: ``(rows, columns)`` or None.
        p_values: ``(rows, columns)`` or None.
    """

    matrix: Tensor
    selves: tuple[Tensor, Tensor]
    samples: int
    batches: int
    pairs: float
    standard_error: Tensor | None = None
    p_values: Tensor | None = None


class Engine(Protocol):
    """Adds up batches: one list of items for each model, one item for each layer.

    Attributes:
        least: samples that a batch must have.
        samples: added so far on this rank.
    """

    @property
    def least(self) -> int:
        """Samples that a batch must have."""

    @property
    def samples(self) -> int:
        """Samples added so far on this rank."""

    def reduce(self, key: Key, x: Tensor) -> Any:
        """What is kept of ``(n, d)`` features; shares no memory with them."""

    def start(
        self,
        items: list[list[Any]],
        samples: int,
        total: int | None,
        select: tuple[list[int], list[int]] | None,
    ) -> str:
        """Plans from the first batch and says what the plan is.

        Args:
            items: of the first batch.
            samples: in it.
            total: in the whole data set (of this rank), as far as known.
            select: with one model, which of its layers are rows and which are columns.
        """

    def add(self, items: list[list[Any]], samples: int, names: list[list[str]]) -> None:
        """Adds a batch, as a whole or not at all; names are for errors."""

    def finish(self, rows: int, columns: int) -> Outcome:
        """The result over all ranks, for a matrix of this size."""

    def close(self) -> None:
        """Gives back what is held: memory, files."""
