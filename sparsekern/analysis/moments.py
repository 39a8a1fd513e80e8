"""Sums over samples from which the exact CKA of narrow layers follows, without storing features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Products of one layer's features with those of consecutive layers.

    Attributes:
        first: position of the first of these layers.
        last: of the last, included.
        sums: ``(d, d_first + ... + d_last)`` float64.
    """

    first: int
    last: int
    sums: Tensor


class Moments:
    """Cross products of features about a pivot, summed over batches in float64.

    With ``z = x - p`` for a fixed pivot p (near the mean, so that nothing cancels),
    ``N δ = Σ z`` and ``α_i = ‖z_i‖²``, the centred products are ``Σ z wᵀ - N δ εᵀ`` and the squared
    norms of the centred samples ``a_i = α_i - 2 z_i·δ + ‖δ‖²``; ``Σ a_i b_i`` expands into sums
    that are taken batch by batch. Feature-space form of HSIC_1 (Song et al. 2012):
    ``n (n-3) HSIC_1 = ‖XᵀY‖² - n/(n-2) Σ a_i b_i + Σa Σb / ((n-1)(n-2))``.

    Layers are in positions: those kept as moments first, then the stored ones.

    Args:
        dims: features of the layer in each position.
        kept: how many positions from the front are kept as moments.
        needed: whether a pair of positions is compared.
        device: where sums are held.
    """

    def __init__(
        self,
        dims: Sequence[int],
        kept: int,
        needed: Callable[[int, int], bool],
        device: torch.device,
    ) -> None:
        self.dims, self.kept = list(dims), kept
        self._starts = [sum(dims[:position]) for position in range(len(dims) + 1)]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.sum_z = zeros(self._starts[-1])
        self.sum_alpha = zeros(len(dims))
        self.sum_alpha_alpha = zeros(len(dims), len(dims))
        self.alpha_z = zeros(kept, self._starts[-1] if kept else 0)
        self.every_alpha_z = zeros(len(dims), self._starts[kept])
        self.blocks = [
            [
                Block(first, last, zeros(dims[at], self._starts[last + 1] - self._starts[first]))
                for first, last in _runs([m for m in range(at, len(dims)) if needed(at, m)])
            ]
            for at in range(kept)
        ]

    def add(self, z: Tensor, alpha: Tensor) -> None:
        """Adds one batch.

        Args:
            z: ``(n, d_0 + d_1 + ...)`` features about the pivot, in the order of positions.
            alpha: ``(n, layers)`` float64, the squared norms of ``z`` layer by layer.
        """
        # Everything that could fail is computed before anything is added.
        products = [
            [self._of(z, at, at).T @ self._of(z, block.first, block.last) for block in blocks]
            for at, blocks in enumerate(self.blocks)
        ]
        narrow = alpha.to(z.dtype)
        own = narrow[:, : self.kept].T @ z if self.kept else None
        every = narrow.T @ z[:, : self._starts[self.kept]]
        for blocks, parts in zip(self.blocks, products, strict=True):
            for block, part in zip(blocks, parts, strict=True):
                block.sums.add_(part)
        if own is not None:
            self.alpha_z.add_(own)
            self.every_alpha_z.add_(every)
        self.sum_z += z.sum(dim=0, dtype=torch.float64)
        self.sum_alpha += alpha.sum(dim=0)
        self.sum_alpha_alpha += alpha.T @ alpha

    def _of(self, z: Tensor, first: int, last: int) -> Tensor:
        return z[:, self._starts[first] : self._starts[last + 1]]

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replaces every sum by that over all ranks."""
        for name in ("sum_z", "sum_alpha", "sum_alpha_alpha", "alpha_z", "every_alpha_z"):
            setattr(self, name, total(getattr(self, name)))
        self.blocks = [
            [Block(block.first, block.last, total(block.sums)) for block in blocks]
            for blocks in self.blocks
        ]

    def mean(self, at: int, samples: int) -> Tensor:
        """The mean of the features in a position, about the pivot: ``(d,)``."""
        return self._of(self.sum_z[None], at, at)[0] / samples

    def energy(self, samples: int) -> Tensor:
        """``Σ a_i`` of each position: the squared norm of its centred features."""
        shifts = torch.stack(
            [self.mean(at, samples).square().sum() for at in range(len(self.dims))]
        )
        return (self.sum_alpha - samples * shifts).clamp(min=0)

    def products(self, samples: int, estimator: str) -> tuple[Tensor, Tensor]:
        """Inner products of centred Gram matrices, for the pairs that are kept as moments.

        Args:
            samples: N.
            estimator: ``"unbiased"``: of U-centred matrices; ``"biased"``: of doubly centred ones.

        Returns:
            ``(layers, layers)``, NaN for other pairs; and ``Σ a_i²`` of the positions kept, which
            tells how far rounding goes.
        """
        count, n = len(self.dims), samples
        result = self.sum_z.new_full((count, count), torch.nan)
        squares = self.sum_z.new_zeros(count)
        energy = self.energy(n)
        means = [self.mean(at, n) for at in range(count)]
        for at, blocks in enumerate(self.blocks):
            squares[at] = self._norm_products(at, at, n, means)
            for block in blocks:
                shift = torch.cat(means[block.first : block.last + 1])
                centred = block.sums - n * means[at][:, None] * shift
                for other in range(block.first, block.last + 1):
                    start = self._starts[other] - self._starts[block.first]
                    value = centred[:, start : start + self.dims[other]].square().sum()
                    if estimator == "unbiased":
                        norms = squares[at] if other == at else None
                        if norms is None:
                            norms = self._norm_products(at, other, n, means)
                        value = value - n / (n - 2) * norms
                        value = value + energy[at] * energy[other] / ((n - 1) * (n - 2))
                    result[at, other] = result[other, at] = value
        return result, squares

    def _norm_products(self, at: int, other: int, n: int, means: list[Tensor]) -> Tensor:
        """``Σ a_i b_i`` of a position kept as moments and any other."""
        d, e = means[at], means[other]
        c, f = d.square().sum(), e.square().sum()
        block = next(b for b in self.blocks[at] if b.first <= other <= b.last)
        start = self._starts[other] - self._starts[block.first]
        cross = block.sums[:, start : start + self.dims[other]]
        alpha_w = self._of(self.alpha_z[at : at + 1], other, other)[0]
        beta_z = self._of(self.every_alpha_z[other : other + 1], at, at)[0]
        return (
            self.sum_alpha_alpha[at, other]
            - 2 * (e @ alpha_w)
            - 2 * (d @ beta_z)
            + f * self.sum_alpha[at]
            + c * self.sum_alpha[other]
            + 4 * (d @ cross @ e)
            - 3 * n * c * f
        )


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    return runs
