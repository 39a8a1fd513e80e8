"""Fits the corrections of :mod:`sparsekern.ops.masked.choice` to a measured grid.

The model's ratio of the dense time to the sparse one is multiplied by a correction of its part and
kind of layer. Of all corrections those are the best under which the choices lose the least time.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence

import torch

from ..ops.masked import choice
from ..ops.masked.corrections import Corrections
from ..ops.masked.rates import DtypeRates
from .grid import Grid

_MOST = 8.0  # more than that is not the model's error, but a measurement's
_FURTHEST = 1.2  # that a correction goes beyond the last measured ratio, where one is always faster


def fit(grids: Sequence[Grid], rates: DtypeRates) -> Corrections:
    """The corrections of a dtype, in the order of :data:`.choice.CORRECTED`; 1 where none is known.

    Args:
        grids: measured with these rates' instruction set and dtype.
        rates: what the model reckons with; their own corrections are not used.
    """
    cells: dict[tuple[str, str | None], list[tuple[float, float]]] = collections.defaultdict(list)
    for grid in grids:
        dtype = getattr(torch, grid.dtype)
        for row in grid.rows:
            own = cells[row.part, row.layer.kind(dtype)]
            for index, sparsity in enumerate(grid.sparsities):
                nnz = row.layer.kept(sparsity)
                modelled = row.layer.modelled(row.part, nnz, dtype, grid.threads, rates)
                own.append((row.ratio(index), modelled))
    return Corrections(best(cells[key]) if cells[key] else 1.0 for key in choice.CORRECTED)


def best(cells: Sequence[tuple[float, float]]) -> float:
    """The correction under which the least is lost.

    Cells are measured and modelled ratios of the dense time to the sparse one. A choice changes
    where its corrected ratio passes 1, so that all corrections between two such places are as good
    as each other: the middle of the best stretch is taken.
    """
    edges = sorted(1 / modelled for _, modelled in cells)
    edges = [edges[0] / _FURTHEST**2, *edges, edges[-1] * _FURTHEST**2]
    middles = [math.sqrt(a * b) for a, b in itertools.pairwise(edges)]
    found = min(middles, key=lambda middle: (round(_lost(cells, middle), 6), abs(math.log(middle))))
    return float(f"{min(max(found, 1 / _MOST), _MOST):.3g}")


def _lost(cells: Sequence[tuple[float, float]], correction: float) -> float:
    """How much longer than the fastest the chosen algorithms take, in all."""
    return sum(
        max(0.0, (ratio if correction * modelled < 1 else 1 / ratio) - 1)
        for ratio, modelled in cells
    )
