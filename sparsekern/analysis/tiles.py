"""Inner products of centred Gram matrices of many samples, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .collective import Team
from .grams import products
from .spill import Spill

_Block = tuple[int, int, int]  # number over all ranks, first row and end on its rank


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
    return _Tiles(store, means, samples, estimator, tile, device, team).products()


class _Tiles:
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
        counts = self._team.gather(self._store.rows)
        blocks = self._blocks(counts)
        own = blocks[self._team.rank]
        norms = {block[0]: self._norms(self._rows(block)) for block in own}
        none = torch.zeros(self._layers, dtype=torch.float64, device=self._device)
        energy = self._team.sum(sum((a.sum(dim=0) for a in norms.values()), none))
        # Tiles are divided by the layer's mean energy, so that no product leaves the range.
        scale = torch.where(energy == 0, 1, energy / self._samples)
        total = torch.zeros(self._layers, self._layers, dtype=torch.float64, device=self._device)
        for owner, theirs in enumerate(blocks):
            for column in theirs:
                right = self._shared(column, owner)
                right_norms = self._norms(right)
                for row in own:
                    if not _is_computed(row[0], column[0]):
                        continue
                    same = row[0] == column[0]
                    left = right if same else self._rows(row)
                    v = self._tile_rows(
                        left, right, norms[row[0]], right_norms, energy, scale, same
                    )
                    total += (1 if same else 2) * products(v, v)
        total = self._team.sum(total)
        return total * scale[:, None] * scale

    def _blocks(self, counts: Sequence[int]) -> list[list[_Block]]:
        """The blocks of each rank, numbered through."""
        result: list[list[_Block]] = []
        number = 0
        for count in counts:
            starts = range(0, count, self._tile)
            result.append(
                [(number + i, s, min(count, s + self._tile)) for i, s in enumerate(starts)]
            )
            number += len(starts)
        return result

    def _rows(self, block: _Block) -> list[Tensor]:
        return list(self._read(block))

    def _read(self, block: _Block) -> Iterator[Tensor]:
        for layer, mean in enumerate(self._means):
            x = self._store.read(layer, block[1], block[2]).to(self._device)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            yield x - mean.to(self._device, x.dtype)

    def _shared(self, block: _Block, owner: int) -> list[Tensor]:
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

    def _norms(self, block: list[Tensor]) -> Tensor:  # -> (rows, layers)
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
    return row == column or (row > column) == ((row + column) % 2 == 0)
