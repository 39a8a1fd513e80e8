"""``mode="exact"``: the CKA of the whole data set as if it were one batch, read once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.precision import accumulation_dtype
from ..ops.similarity import Cosine, Linear
from ..ops.similarity.kernels import Kernel
from ..ops.similarity.reference import NOISE_UNITS, column_means, hsic_scale, unit_rows
from .collective import Team
from .engine import Outcome
from .kernel_tiles import KernelTiles, passes
from .moments import Moments
from .plan import Budget, Plan, make_plan
from .spill import Spill
from .sums import normalised
from .taps import Key
from .tiles import tiled_products

_LEAST_SAMPLES = {"unbiased": 4, "biased": 2}
_UNKNOWN_SAMPLES = 10_000  # planned for where a loader does not tell its length


@dataclass(frozen=True)
class Features:
    """A copy of one layer's features, ``(n, d)``, and the rounding unit of what they were."""

    values: Tensor
    unit: float


class ExactEngine:
    """Sums of products for narrow layers, stored features and tiles for wide ones.

    Args:
        kernel: of all layers. Linear and cosine ones (linear on samples of unit length) have
            moments; of the others all layers are stored.
        estimator: ``"unbiased"`` or ``"biased"``.
        one_model: whether a model is compared with itself.
        budget: of memory and disk.
        team: the ranks that share the work.
    """

    least = 1

    def __init__(
        self, kernel: Kernel, estimator: str, one_model: bool, budget: Budget, team: Team
    ) -> None:
        self.samples = 0
        self._kernel, self._estimator, self._one_model = kernel, estimator, one_model
        self._budget, self._team = budget, team
        self._batches = self._rows = 0
        self._order: list[int] = []  # which layer is in each position
        self._dims: list[int] = []
        self._first = 0  # layers of the first model
        self._select: tuple[list[int], list[int]] | None = None
        self._pivots: list[Tensor] = []
        self._units: list[float] = []
        self._plan: Plan | None = None
        self._moments: Moments | None = None
        self._store: Spill | None = None

    def reduce(self, key: Key, x: Tensor) -> Features:
        """A copy of the features in the dtype that they are summed in."""
        unit = torch.finfo(x.dtype).eps / 2
        if isinstance(self._kernel, Cosine):
            return Features(unit_rows(x), unit)
        dtype = accumulation_dtype(x.dtype)
        return Features(x.clone() if x.dtype == dtype else x.to(dtype), unit)

    def start(
        self,
        items: list[list[Features]],
        samples: int,
        total: int | None,
        select: tuple[list[int], list[int]] | None,
    ) -> str:
        """Plans from the first batch; ranks agree on the plan and the pivot."""
        layers = [item for group in items for item in group]
        self._select, self._first = select, len(items[0])
        self._dims = [item.values.shape[1] for item in layers]
        self._units = [item.unit for item in layers]
        rows = len(layers[0].values)
        ahead = None if total is None else total * rows // samples
        states = self._team.meet("start", (self._dims, ahead))
        if any(dims != self._dims for dims, _ in states):
            raise ValueError("ranks have layers of different widths: they must run the same models")
        known = [_UNKNOWN_SAMPLES // len(states) if n is None else n for _, n in states]
        n = max(sum(known), rows)
        device = layers[0].values.device
        dtypes = {item.values.dtype for item in layers}
        stored = self._budget.dtype or (torch.float64 if torch.float64 in dtypes else torch.float32)
        tiles = 1 if self._is_linear else passes(self._kernel, _computed_in(stored))
        plan = make_plan(
            self._dims,
            n,
            self._budget,
            element=stored.itemsize,
            ranks=len(states),
            has_moments=self._is_linear,
            passes=tiles,
        )
        kept = set(plan.moments)
        self._order = [*plan.moments, *(i for i in range(len(layers)) if i not in kept)]
        self._pivots = [
            self._team.broadcast(column_means(layers[i].values).to(torch.float64), 0)
            for i in self._order
        ]
        dims = [self._dims[i] for i in self._order]
        self._moments = Moments(dims, len(kept), self._is_needed, device)
        if len(kept) < len(dims):
            self._store = Spill(
                dims[len(kept) :], stored, plan.on_disk, plan.stored_bytes, self._budget
            )
        self._plan = plan
        return plan.describe(n, self._dims)

    @property
    def _is_linear(self) -> bool:
        return isinstance(self._kernel, Linear | Cosine)

    def _is_needed(self, position: int, other: int) -> bool:
        if self._one_model or position == other:
            return True
        return (self._order[position] < self._first) != (self._order[other] < self._first)

    def add(self, items: list[list[Features]], samples: int, names: list[list[str]]) -> None:
        """Adds a batch.

        Raises:
            ValueError: if a layer's width changes, layers differ in their number of samples, or
                features are not finite.
        """
        assert self._moments is not None
        layers = [item.values for group in items for item in group]
        flat_names = [name for group in names for name in group]
        rows = len(layers[0])
        for x, d, name in zip(layers, self._dims, flat_names, strict=True):
            if x.shape[1] != d:
                raise ValueError(
                    f"the output of {name} has {x.shape[1]} features in this batch and had {d} in "
                    'the first: the exact mode needs one width (tokens="mean" gives one to '
                    "sequences of any length)"
                )
            if len(x) != rows:
                raise ValueError(
                    f"layers differ in the number of samples: {name} has {len(x)} and "
                    f"{flat_names[0]} {rows}"
                )
        device = self._moments.sum_z.device
        z = torch.cat(
            [
                (layers[i].to(device).sub_(pivot.to(device, layers[i].dtype)))
                for i, pivot in zip(self._order, self._pivots, strict=True)
            ],
            dim=1,
        )
        widths = [self._dims[i] for i in self._order]
        parts = torch.split(z, widths, dim=1)
        alpha = torch.stack(
            [torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square() for x in parts], dim=1
        )
        finite = torch.isfinite(alpha).all(dim=0).tolist()
        if not all(finite):
            bad = flat_names[self._order[finite.index(False)]]
            raise ValueError(f"the output of {bad} holds values that are not finite")
        if self._store is not None:
            self._store.append(parts[self._moments.kept :])
        self._moments.add(z, alpha)
        self._rows += rows
        self.samples += samples
        self._batches += 1

    def finish(self, rows: int, columns: int) -> Outcome:
        """Adds up over ranks, computes the tiles, and divides."""
        assert self._moments is not None
        moments = self._moments
        counts = torch.tensor([self._rows, self.samples, self._batches], dtype=torch.float64)
        n, samples, batches = (int(value) for value in self._team.sum(counts).tolist())
        least = _LEAST_SAMPLES[self._estimator]
        if n < least:
            raise ValueError(
                f"the data has {n} sample(s) in all; the {self._estimator} estimator needs "
                f"at least {least}"
            )
        moments.reduce(self._team.sum)
        placed, noise_at = self._linear_products(n) if self._is_linear else self._kernel_products(n)
        products = torch.empty_like(placed)
        order = torch.tensor(self._order, device=placed.device)
        products[order[:, None], order[None, :]] = placed
        own = products.diagonal().clone()
        noise = torch.empty_like(own)
        noise[order] = noise_at
        own = torch.where(own <= noise, 0, own)
        first, second = self._select or (
            list(range(self._first)),
            list(range(self._first, len(self._dims))),
        )
        cross = products[first][:, second]
        scale = hsic_scale(n, self._estimator)
        return Outcome(
            normalised(cross, own[first], own[second]),
            (own[first] / scale, own[second] / scale),
            samples,
            batches,
            n * (n - 3) / 2,
        )

    def _linear_products(self, n: int) -> tuple[Tensor, Tensor]:
        """Of all pairs of positions, and what rounding alone could give each."""
        moments, count = self._moments, len(self._dims)
        assert moments is not None
        assert self._plan is not None
        placed, squares = moments.products(n, self._estimator)
        if self._store is not None:
            kept = moments.kept
            means = [moments.mean(at, n) for at in range(kept, count)]
            placed[kept:, kept:] = tiled_products(
                self._store, means, n, self._estimator, self._plan.tile, placed.device, self._team
            )
        return placed, self._noise(moments.energy(n), squares, n)

    def _kernel_products(self, n: int) -> tuple[Tensor, Tensor]:
        """The same for kernels that are not linear in the features: all layers are stored."""
        assert self._moments is not None
        assert self._plan is not None
        means = [self._moments.mean(at, n) for at in range(len(self._dims))]
        device = self._moments.sum_z.device
        return KernelTiles(
            self._kernel,
            [
                pivot.to(device) + mean.to(device)
                for pivot, mean in zip(self._pivots, means, strict=True)
            ],
            self._store,
            means,
            n,
            self._estimator,
            self._plan.tile,
            device,
            self._team,
        ).products_and_noise()

    def _noise(self, energy: Tensor, squares: Tensor, n: int) -> Tensor:
        """The squared norm that rounding alone could give each position's centred Gram matrix."""
        assert self._moments is not None
        levels = []
        for at, layer in enumerate(self._order):
            pivot = self._pivots[at]
            unit = torch.finfo(torch.float32).eps / 2
            if self._units[layer] < unit:
                unit = self._units[layer]
            level = NOISE_UNITS * unit * energy[at]
            raw = n * float(pivot.square().sum()) / max(1, len(pivot)) ** 0.5
            level = level + NOISE_UNITS * self._units[layer] ** 2 * raw
            # Moments subtract Σ a_i²: what that leaves of rounding is not the layer's.
            levels.append(torch.maximum(level.square(), NOISE_UNITS * unit * squares[at]))
        return torch.stack(levels)

    def close(self) -> None:
        """Removes the files of features."""
        if self._store is not None:
            self._store.close()


def _computed_in(stored: torch.dtype) -> torch.dtype:
    return torch.promote_types(stored, torch.float32)
