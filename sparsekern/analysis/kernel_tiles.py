"""Centred Gram matrices of RBF and polynomial kernels over many samples, tile by tile.

Their row sums do not follow from sums over features, so tiles are made twice, for the row sums and
for the inner products; with the median heuristic once more for each half of a float's bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.similarity import RBF, Polynomial
from ..ops.similarity.kernels import Kernel
from ..ops.similarity.reference import NOISE_UNITS
from .grams import products
from .tiles import Block, Tiles

_DIGIT = 16  # bits of a float looked at in one pass of the selection
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def passes(kernel: Kernel, dtype: torch.dtype) -> int:
    """How often every tile is made, for features of this dtype."""
    selects = isinstance(kernel, RBF) and kernel.bandwidth is None
    return 2 + (8 * dtype.itemsize // _DIGIT if selects else 0)


class KernelTiles(Tiles):
    """Tiles of Gram matrices of a kernel that is not linear in the features.

    Args:
        kernel: RBF or polynomial.
        origins: of each layer, the mean of its features as they are, float64.
        arguments: those of :class:`~sparsekern.analysis.tiles.Tiles`.
    """

    def __init__(self, kernel: Kernel, origins: Sequence[Tensor], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._kernel, self._origins = kernel, origins
        self._variances: list[float] = []

    def products_and_noise(self) -> tuple[Tensor, Tensor]:
        """Inner products of the centred Gram matrices of all pairs of layers.

        Returns:
            ``(layers, layers)`` float64; and of each layer the squared norm that rounding alone
            could give its centred Gram matrix. The same on every rank.
        """
        blocks, n = self.blocks(), self._samples
        if isinstance(self._kernel, RBF):
            self._variances = self._find_variances(blocks, self._kernel)
        starts = _starts(blocks)
        unbiased = self._estimator == "unbiased"
        sums = self._zeros(self._layers, n)
        traces, squares = self._zeros(self._layers), self._zeros(self._layers)
        unit = 0.0
        for layer, row, column, k in self._tiles(blocks):
            unit = torch.finfo(k.dtype).eps / 2
            same = row == column
            if same:
                traces[layer] += k.diagonal().sum(dtype=torch.float64)
                if unbiased:
                    k.fill_diagonal_(0)
            else:
                sums[layer, _part(column, starts)] += k.sum(dim=0, dtype=torch.float64)
            sums[layer, _part(row, starts)] += k.sum(dim=1, dtype=torch.float64)
            norm = torch.linalg.vector_norm(k, dtype=torch.float64)
            squares[layer] += (1 if same else 2) * norm.square()
        sums, traces, squares = (self._team.sum(one) for one in (sums, traces, squares))
        # U-centring (Székely & Rizzo 2014), or HKH: K_ij - s_i - s_j.
        less, more = (n - 2, (n - 1) * (n - 2)) if unbiased else (n, n * n)
        shifts = sums / less - sums.sum(dim=1, keepdim=True) / (2 * more)
        # Tiles are divided by the mean of the diagonal, so that no product leaves the range.
        scale = torch.where(traces == 0, 1, traces.abs() / n)
        total = self._zeros(self._layers, self._layers)
        v: Tensor | None = None
        for layer, row, column, k in self._tiles(blocks):
            k -= shifts[layer, _part(row, starts)].to(k.dtype)[:, None]
            k -= shifts[layer, _part(column, starts)].to(k.dtype)
            if row == column and unbiased:
                k.fill_diagonal_(0)
            k /= scale[layer].to(k.dtype)
            v = k.new_empty(self._layers, k.numel()) if v is None or layer == 0 else v
            v[layer] = k.flatten()
            if layer == self._layers - 1:
                total += (1 if row == column else 2) * products(v, v)
        total = self._team.sum(total) * scale[:, None] * scale
        energy = (squares + (n if unbiased else 0)).sqrt()  # with the diagonal of ones
        level = energy if isinstance(self._kernel, RBF) else traces.abs()
        units = self._team.gather(unit)
        return total, (NOISE_UNITS * max(units) * level).square()

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self._device)

    def _tiles(
        self, blocks: Sequence[Sequence[Block]], distances: bool = False
    ) -> Iterator[tuple[int, Block, Block, Tensor]]:
        """Every tile of every layer: of the Gram matrix, or of squared distances."""
        for row, column, left, right in self.pairs(blocks):
            for layer, (x, y) in enumerate(zip(left, right, strict=True)):
                if isinstance(self._kernel, RBF):
                    k = _squared_distances(x, y, row == column)
                    if not distances:
                        k = _gaussian(k, self._variances[layer])
                else:
                    assert isinstance(self._kernel, Polynomial)
                    k = _dots(x, y, self._origins[layer].to(self._device))
                    k = k.add_(self._kernel.c).pow_(self._kernel.degree)
                yield layer, row, column, k

    def _find_variances(self, blocks: Sequence[Sequence[Block]], kernel: RBF) -> list[float]:
        if kernel.bandwidth is not None:
            return [kernel.bandwidth**2] * self._layers
        return [kernel.fraction**2 * median for median in self._medians(blocks)]

    def _medians(self, blocks: Sequence[Sequence[Block]]) -> list[float]:
        """The median of all n² squared distances of each layer, as numpy takes it.

        Floats that are not negative are ordered as their bits are: the middle two are found digit
        by digit, from counts alone, which ranks can add up.
        """
        count = self._samples**2
        dtype = torch.promote_types(self._store.dtype, torch.float32)
        integer, bits = _INTEGERS[dtype], 8 * dtype.itemsize
        # Of each layer, for the lower and the upper one: the digits so far, and the rank among
        # those floats that begin with them.
        found = [[(0, (count - 1) // 2), (0, count // 2)] for _ in range(self._layers)]
        for shift in range(bits - _DIGIT, -1, -_DIGIT):
            counts = self._zeros(self._layers, 2, 1 << _DIGIT, dtype=torch.int64)
            for layer, row, column, d in self._tiles(blocks, distances=True):
                values = d.flatten().view(integer)
                heads = values >> shift
                for which in range(1 if found[layer][0][0] == found[layer][1][0] else 2):
                    begin = found[layer][which][0]
                    mine = heads if shift == bits - _DIGIT else heads[heads >> _DIGIT == begin]
                    digits = mine & ((1 << _DIGIT) - 1)
                    own = torch.bincount(digits, minlength=1 << _DIGIT)
                    counts[layer, which] += own * (1 if row == column else 2)
            ends = self._team.sum(counts).cumsum(dim=2).cpu()
            for layer, pair in enumerate(found):
                alike = pair[0][0] == pair[1][0]
                for which, (begin, rank) in enumerate(pair):
                    column_ends = ends[layer, 0 if alike else which]
                    digit = int(torch.searchsorted(column_ends, rank, right=True))
                    before = int(column_ends[digit - 1]) if digit else 0
                    pair[which] = ((begin << _DIGIT) + digit, rank - before)
        return [
            sum(float(torch.tensor(bits_of, dtype=integer).view(dtype)) for bits_of, _ in pair) / 2
            for pair in found
        ]


def _starts(blocks: Sequence[Sequence[Block]]) -> dict[int, int]:
    """Where each block begins among the samples of all ranks, by its number."""
    result, offset = {}, 0
    for theirs in blocks:
        result.update({number: offset + start for number, start, _ in theirs})
        offset += theirs[-1][2] if theirs else 0
    return result


def _part(block: Block, starts: dict[int, int]) -> slice:
    first = starts[block[0]]
    return slice(first, first + block[2] - block[1])


def _squared_distances(x: Tensor, y: Tensor, same: bool) -> Tensor:  # (p, d), (q, d) -> (p, q)
    d = torch.mm(x, y.T)
    a, b = (
        torch.linalg.vector_norm(one, dim=1, dtype=torch.float64).square().to(d.dtype)
        for one in (x, y)
    )
    d = d.mul_(-2).add_(a[:, None]).add_(b).clamp_(min=0).add_(0.0)  # no negative zeros
    return d.fill_diagonal_(0) if same else d


def _gaussian(distances: Tensor, variance: float) -> Tensor:
    if variance == 0:  # over half of the pairs coincide: the limit of a narrow kernel
        return (distances == 0).to(distances.dtype)
    return distances.mul_(-0.5 / variance).exp_()


def _dots(x: Tensor, y: Tensor, origin: Tensor) -> Tensor:  # (p, d), (q, d), (d,) -> (p, q)
    """Inner products of the features as they were before their mean was taken off."""
    a, b = (one.to(torch.float64) @ origin for one in (x, y))
    common = a[:, None] + b + origin @ origin
    return (torch.mm(x, y.T).to(torch.float64) + common).to(x.dtype)
