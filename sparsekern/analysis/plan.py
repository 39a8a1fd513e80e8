"""What a comparison over a whole data set will cost, decided and said before it starts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..ops import checks

_FLOAT64 = 8


@dataclass(frozen=True)
class Budget:
    """What the exact mode may use.

    Attributes:
        memory: bytes of sums and features held.
        disk: bytes of features written to files.
        folder: of these files; None for the system's folder of temporary files.
        dtype: features are stored in; None for their own.
    """

    memory: int = 4 << 30
    disk: int = 32 << 30
    folder: str | Path | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name, value in (("memory_budget", self.memory), ("disk_budget", self.disk)):
            if not checks.number(value, name) >= 0:
                raise ValueError(f"{name} must be at least 0 bytes, got {value}")
        if self.dtype not in (None, torch.float16, torch.float32, torch.float64):
            raise ValueError(
                f"spill_dtype must be torch.float16, float32 or float64, got {self.dtype}"
            )


@dataclass(frozen=True)
class Plan:
    """How the exact mode treats each layer, and what that takes.

    Attributes:
        moments: indices of layers that are kept as products of features, ``d x d``; the others
            are stored, and compared by tiles of their Gram matrices.
        moment_bytes: of the products.
        stored_bytes: of the stored features, in all.
        on_disk: whether they go to files.
        tile: samples along a tile.
        operations: multiplications and additions of matrix products, about.
    """

    moments: tuple[int, ...]
    moment_bytes: int
    stored_bytes: int
    on_disk: bool
    tile: int
    operations: float

    def describe(self, samples: int, dims: Sequence[int]) -> str:
        """The plan in a line."""
        stored = len(dims) - len(self.moments)
        parts = [f"{samples} samples in one batch, {len(dims)} layers"]
        if self.moments:
            parts.append(
                f"{len(self.moments)} by moments of their features "
                f"({human_bytes(self.moment_bytes)} of memory)"
            )
        if stored:
            where = "files" if self.on_disk else "memory"
            parts.append(
                f"{stored} by tiles of Gram matrices of {self.tile} samples "
                f"({human_bytes(self.stored_bytes)} of features in {where})"
            )
        return "; ".join(parts) + f"; {self.operations / 1e9:.3g} billion operations"


def make_plan(
    dims: Sequence[int],
    samples: int,
    budget: Budget,
    *,
    element: int = 4,
    ranks: int = 1,
    has_moments: bool = True,
    passes: int = 1,
) -> Plan:
    """Chooses the layers that are kept as moments, so that operations are fewest in the memory.

    With the layers sorted by width, moments of the k narrowest cost
    ``N (S_k²/2 + S_k (S - S_k))`` products of their features and the tiles of the others
    ``N² (S - S_k) / 2`` for each pass, where ``S_k`` is the sum of their widths. All k are tried.

    Args:
        dims: features of each layer.
        samples: N of the whole data set, over all ranks.
        budget: what may be used.
        element: bytes of a stored value.
        ranks: that share the samples.
        has_moments: whether the kernel has any; else all layers are stored.
        passes: how often every tile is made.

    Raises:
        ValueError: if no choice fits into the budget; the message says what would.
    """
    order = sorted(range(len(dims)), key=lambda layer: (dims[layer], layer))
    total = sum(dims)
    share = -(-samples // ranks)
    best: Plan | None = None
    nearest: tuple[int, int] | None = None
    kept = 0  # S_k
    for k in range(len(order) + 1 if has_moments else 1):
        if k > 0:
            kept += dims[order[k - 1]]
        rest = total - kept
        # Products with every later and every stored layer, and those with the samples' norms.
        moment_bytes = _FLOAT64 * (kept * (kept + dims[order[k - 1]] if k else 0) // 2)
        moment_bytes += _FLOAT64 * (kept * rest + (k * total + len(dims) * kept if k else 0))
        stored = element * share * rest
        operations = 2.0 * samples * (kept * kept / 2 + kept * rest)
        operations += passes * samples**2 * float(rest)
        fits_memory = moment_bytes <= budget.memory
        on_disk = stored + moment_bytes > budget.memory
        if not fits_memory or (on_disk and stored > budget.disk):
            need = (moment_bytes, stored)
            nearest = need if nearest is None or sum(need) < sum(nearest) else nearest
            continue
        if best is None or operations < best.operations:
            tile = _tile(len(dims) - k, max(dims), samples, budget.memory - moment_bytes)
            best = Plan(tuple(sorted(order[:k])), moment_bytes, stored, on_disk, tile, operations)
    if best is None:
        assert nearest is not None
        raise ValueError(
            f"{samples} samples of {total} features in {len(dims)} layers do not fit into the "
            f"budget ({human_bytes(budget.memory)} of memory, {human_bytes(budget.disk)} of disk): "
            f"the smallest way takes {human_bytes(nearest[0])} of memory and "
            f"{human_bytes(nearest[1])} of stored features. Raise memory_budget or disk_budget, "
            'choose fewer layers, or take fewer features (tokens="mean", spatial="mean")'
        )
    return best


def _tile(layers: int, widest: int, samples: int, memory: int) -> int:
    """Samples along a tile: the most that keep one tile per layer and two blocks in the memory."""
    tile = 4096
    while tile > 64 and 4 * (2 * layers * tile * tile + 3 * tile * widest) > memory:
        tile //= 2
    return max(4, min(tile, samples))


def spill_folder(budget: Budget) -> str:
    """Where files of features go.

    Raises:
        ValueError: if that is no folder.
    """
    folder = Path(tempfile.gettempdir() if budget.folder is None else budget.folder)
    if not folder.is_dir():
        raise ValueError(f"spill_folder {folder} is not a folder")
    return str(folder)


def human_bytes(count: float) -> str:
    """Bytes in a unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
