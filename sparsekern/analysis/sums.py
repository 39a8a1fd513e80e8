"""Sums of HSIC over batches: added up, grouped for standard errors, divided once at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.similarity.reference import hsic_scale
from .grams import LayerGram, centred, products, self_products, silenced

_MOST_GROUPS = 128
_GROUP_BYTES = 256 << 20


@dataclass(frozen=True)
class Shape:
    """How many layers are compared; packs the sums that make a CKA matrix into one vector.

    Attributes:
        rows: layers of the first model.
        columns: layers of the second.
    """

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Numbers in a packed vector."""
        return self.rows * self.columns + self.rows + self.columns

    def pack(self, cross: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """One vector of ``HSIC(x, y)``, ``HSIC(x, x)`` and ``HSIC(y, y)``."""
        return torch.cat([cross.flatten(), first, second])

    def cross(self, packed: Tensor) -> Tensor:  # (..., size) -> (..., rows, columns)
        """``HSIC(x, y)`` of packed vectors."""
        count = self.rows * self.columns
        result: Tensor = packed[..., :count].unflatten(-1, (self.rows, self.columns))
        return result

    def selves(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """``HSIC(x, x)`` and ``HSIC(y, y)`` of packed vectors."""
        count = self.rows * self.columns
        return packed[..., count : count + self.rows], packed[..., count + self.rows :]

    def cka(self, packed: Tensor) -> Tensor:  # (..., size) -> (..., rows, columns)
        """CKA from packed sums; 0 where a layer has no variation."""
        return normalised(self.cross(packed), *self.selves(packed))


def normalised(cross: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``cross / √(first second)`` with each norm dividing on its own; 0/0 is 0.

    Args:
        cross: ``(..., rows, columns)``.
        first: ``(..., rows)``, not negative.
        second: ``(..., columns)``.
    """
    x, y = (
        torch.where(one == 0, 0, torch.where(one == 0, 1, one).rsqrt()) for one in (first, second)
    )
    return cross * x[..., :, None] * y[..., None, :]


def _without_noise(products: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Inner products with those of layers whose own is no more than rounding set to 0."""
    return products.masked_fill((first == 0)[:, None] | (second == 0), 0)


@dataclass
class BatchSums:
    """Unbiased (or biased) HSIC of all pairs of layers, summed over batches.

    A matrix per batch is kept up to a number of groups; then neighbours are added, so that every
    group has as many batches as the others.

    Attributes:
        estimator: ``"unbiased"`` or ``"biased"``.
        one_model: whether rows and columns are layers of one model.
        permutations: how many permutations of the samples are drawn in each batch for a null
            distribution; 0 for none.
        seed: of these.
        shape: known after the first batch.
        groups: packed sums.
        null: ``(permutations, rows, columns)`` sums with the second model's samples permuted.
        samples: seen.
        batches: seen.
        pairs: degrees of freedom of the null: the sum of ``n (n - 3) / 2`` over batches.
    """

    estimator: str
    one_model: bool
    permutations: int = 0
    seed: int = 0
    shape: Shape | None = None
    groups: list[Tensor] = field(default_factory=list)
    null: Tensor | None = None
    samples: int = 0
    batches: int = 0
    pairs: float = 0.0
    _per_group: int = 1
    _in_last: int = 0

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def add(
        self,
        grams1: list[LayerGram],
        grams2: list[LayerGram] | None,
        samples: int,
        select: tuple[list[int], list[int]] | None = None,
    ) -> None:
        """Adds one batch.

        Args:
            grams1: of the first model's layers.
            grams2: of the second's, or None where one model is compared with itself.
            samples: in the batch.
            select: with one model, which of its layers are rows and which are columns.
        """
        n = len(grams1[0].matrix)  # with every position as a sample more than samples
        one = centred(grams1, self.estimator)
        divisor = hsic_scale(n, self.estimator)
        v = w = one.rows
        left = one.scale
        if grams2 is None:
            rows, columns = select or (list(range(len(v))),) * 2
            whole = products(v, v)
            own = silenced(whole.diagonal(), one.noise)
            whole = _without_noise(whole, own, own)
            cross, first, second = whole[rows][:, columns], own[rows], own[columns]
            left, right = one.scale[rows], one.scale[columns]
            if self.permutations:
                v, w = v[rows], v[columns]
        else:
            two = centred(grams2, self.estimator)
            w, right = two.rows.to(v), two.scale.to(v.device)
            first = silenced(self_products(v), one.noise)
            second = silenced(self_products(w), two.noise.to(v.device))
            cross = _without_noise(products(v, w), first, second)
        scale = left[:, None] * right / divisor
        cross = cross * scale
        null = None
        if self.permutations:
            null = _without_noise(self._permuted(v, w, n), first, second) * scale
        first, second = first * left.square() / divisor, second * right.square() / divisor
        self.shape = self.shape or Shape(*cross.shape)
        packed = self.shape.pack(cross, first, second)
        # From here on nothing can fail half-way: an interruption leaves whole batches.
        if null is not None:
            self.null = null if self.null is None else self.null + null
        self._append(packed)
        self.samples += samples
        self.batches += 1
        self.pairs += n * (n - 3) / 2

    def _append(self, packed: Tensor) -> None:
        if self.groups and self._in_last < self._per_group:
            self.groups[-1] = self.groups[-1] + packed
            self._in_last += 1
            return
        most = max(8, min(_MOST_GROUPS, _GROUP_BYTES // (8 * len(packed))))
        if len(self.groups) >= most:
            self.groups = [
                sum(self.groups[i + 1 : i + 2], self.groups[i])
                for i in range(0, len(self.groups), 2)
            ]
            self._per_group *= 2
        self.groups.append(packed)
        self._in_last = 1

    def _permuted(self, v: Tensor, w: Tensor, n: int) -> Tensor:  # -> (permutations, p, q)
        """Inner products with the samples of ``w`` permuted, many at once."""
        orders = torch.stack(
            [torch.randperm(n, generator=self._generator) for _ in range(self.permutations)]
        ).to(v.device)
        result = v.new_empty(self.permutations, len(v), len(w), dtype=torch.float64)
        step = max(1, (1 << 24) // (n * n))
        for column, matrix in enumerate(w.view(len(w), n, n)):
            for start in range(0, self.permutations, step):
                order = orders[start : start + step]
                shuffled = matrix[order[:, :, None], order[:, None, :]].flatten(1)
                result[start : start + step, :, column] = products(shuffled, v)
        return result

    @property
    def total(self) -> Tensor:
        """The packed sums over all batches, in a fixed order."""
        return torch.stack(self.groups).sum(dim=0)
