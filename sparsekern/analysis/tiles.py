"""Inner products of centred Gram matrices of many samples, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .collective import Team
from .grams import products
from .spill import Spill

Block = tuple[int, int, int]  # number over all ranks, first row and end on its rank


def tiled_products(
    store: Spill,
    means: Sequence[Tensor],
    samples: int,
    estimator: str,
    tile: int,
    device: torch.device,
    team: Team,
) -> Tensor:
    """``⟨U(K_l), U(K_m)⟩`` of all pairs of stored layers (doubly centred for ``"biased"``).

    For column-centred features the row sums of K without its diagonal are ``-a_i = -‖x_i‖²``, so
    a tile is U-centred when it is made: ``U_ij = K_ij + (a_i + a_j)/(n-2) - Σa/((n-1)(n-2))``.
    No sum cancels, and only one tile per layer is held. Each unordered pair of blocks is computed
    once; across ranks a block is broadcast by its owner, and of every pair one rank makes the tile.

    Args:
        store: features about a pivot, this rank's samples.
        means: of each layer about the pivot, over all ranks, float64.
        samples: N, over all ranks.
        estimator: ``"unbiased"`` or ``"biased"``.
        tile: samples along a tile.
        device: to compute on.
        team: the ranks.

    Returns:
        ``(layers, layers)`` float64, on every rank.
    """
    return Tiles(store, means, samples, estimator, tile, device, team).products()


class Tiles:
    """Goes through all pairs of blocks of samples, each pair once over all ranks.

    Arguments are those of :func:`tiled_products`.
    """

    def __init__(
        self,
        store: Spill,
        means: Sequence[Tensor],
        samples: int,
        estimator: str,
        tile: int,
        device: torch.device,
        team: Team,
    ) -> None:
        self._store, self._means, self._samples = store, means, samples
        self._estimator, self._tile, self._device, self._team = estimator, tile, device, team
        self._layers = len(means)

    def products(self) -> Tensor:
        """See :func:`tiled_products`."""
        blocks = self.blocks()
        norms = {block[0]: self.norms(self._rows(block)) for block in blocks[self._team.rank]}
        none = torch.zeros(self._layers, dtype=torch.float64, device=self._device)
        energy = self._team.sum(sum((a.sum(dim=0) for a in norms.values()), none))
        # Tiles are divided by the layer's mean energy, so that no product leaves the range.
        scale = torch.where(energy == 0, 1, energy / self._samples)
        total = torch.zeros(self._layers, self._layers, dtype=torch.float64, device=self._device)
        at: Block | None = None
        for row, column, left, right in self.pairs(blocks):
            if column != at:
                at, right_norms = column, self.norms(right)
            same = row == column
            v = self._tile_rows(left, right, norms[row[0]], right_norms, energy, scale, same)
            total += (1 if same else 2) * products(v, v)
        total = self._team.sum(total)
        return total * scale[:, None] * scale

    def pairs(
        self, blocks: Sequence[Sequence[Block]]
    ) -> Iterator[tuple[Block, Block, list[Tensor], list[Tensor]]]:
        """The pairs of blocks that this rank computes, with the centred features of each layer.

        Every rank must go through all of them: blocks are handed round on the way.
        """
        for owner, theirs in enumerate(blocks):
            for column in theirs:
                right = self._shared(column, owner)
                for row in blocks[self._team.rank]:
                    if row[0] == column[0]:
                        yield row, column, right, right
                    elif _is_computed(row[0], column[0]):
                        yield row, column, self._rows(row), right

    def blocks(self) -> list[list[Block]]:
        """The blocks of each rank, numbered through."""
        result: list[list[Block]] = []
        number = 0
        for count in self._team.gather(self._store.rows):
            starts = range(0, count, self._tile)
            result.append(
                [(number + i, s, min(count, s + self._tile)) for i, s in enumerate(starts)]
            )
            number += len(starts)
        return result

    def _rows(self, block: Block) -> list[Tensor]:
        return list(self._read(block))

    def _read(self, block: Block) -> Iterator[Tensor]:
        for layer, mean in enumerate(self._means):
            x = self._store.read(layer, block[1], block[2]).to(self._device)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            yield x - mean.to(self._device, x.dtype)

    def _shared(self, block: Block, owner: int) -> list[Tensor]:
        if not self._team.active:
            return self._rows(block)
        mine = self._team.rank == owner
        shape = block[2] - block[1]
        found = []
        for layer, mean in enumerate(self._means):
            dtype = torch.promote_types(self._store.dtype, torch.float32)
            x = torch.empty(shape, len(mean), dtype=dtype, device=self._device)
            if mine:
                x = self._store.read(layer, block[1], block[2]).to(self._device, dtype)
                x = x - mean.to(self._device, dtype)
            found.append(self._team.broadcast(x, owner))
        return found

    def norms(self, block: list[Tensor]) -> Tensor:  # -> (rows, layers)
        """Squared norms of the samples in each layer, float64."""
        return torch.stack(
            [torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square() for x in block], dim=1
        )

    def _tile_rows(
        self,
        left: list[Tensor],
        right: list[Tensor],
        left_norms: Tensor,
        right_norms: Tensor,
        energy: Tensor,
        scale: Tensor,
        diagonal: bool,
    ) -> Tensor:  # -> (layers, rows · columns)
        n = self._samples
        dtype = left[0].dtype
        for x in left:
            dtype = torch.promote_types(dtype, x.dtype)
        v = torch.empty(self._layers, len(left[0]), len(right[0]), dtype=dtype, device=self._device)
        for layer, (x, y) in enumerate(zip(left, right, strict=True)):
            k = torch.mm(x / scale[layer].to(x.dtype), y.T)
            if self._estimator == "unbiased":
                shift = energy[layer] / (2 * (n - 1) * (n - 2))
                rows = (left_norms[:, layer] / (n - 2) - shift) / scale[layer]
                columns = (right_norms[:, layer] / (n - 2) - shift) / scale[layer]
                k += rows.to(k.dtype)[:, None]
                k += columns.to(k.dtype)
                if diagonal:
                    k.fill_diagonal_(0)
            v[layer] = k
        return v.flatten(1)


def _is_computed(row: int, column: int) -> bool:
    """Which of (row, column) and (column, row) is computed: half of each row, so ranks are even."""
    return (row > column) == ((row + column) % 2 == 0)
