"""``mode="minibatch"``: HSIC summed over batches (Nguyen et al. 2021), divided once at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.similarity.kernels import Kernel
from .collective import Team
from .engine import Outcome
from .grams import LayerGram, layer_gram
from .plan import human_bytes
from .sums import BatchSums, Shape
from .taps import Key
from .uncertainty import bootstrap, jackknife, p_values

_LEAST_SAMPLES = {"unbiased": 4, "biased": 2}


class MinibatchEngine:
    """Keeps one centred Gram matrix per layer of the batch at hand, and sums.

    Args:
        kernel: of all layers.
        estimator: ``"unbiased"`` or ``"biased"``.
        one_model: whether a model is compared with itself.
        team: the ranks that share the work.
        standard_error: ``"jackknife"``, ``"bootstrap"`` or None.
        permutations: of the permutation test; 0 for none.
        seed: of permutations and bootstrap.
    """

    def __init__(
        self,
        kernel: Kernel,
        estimator: str,
        one_model: bool,
        team: Team,
        *,
        standard_error: str | None,
        permutations: int,
        seed: int,
    ) -> None:
        self.least = _LEAST_SAMPLES[estimator]
        self._kernel, self._estimator, self._team = kernel, estimator, team
        self._standard_error, self._seed = standard_error, seed
        # Ranks draw different permutations of their own samples.
        self._sums = BatchSums(estimator, one_model, permutations, seed + team.rank)
        self._select: tuple[list[int], list[int]] | None = None

    @property
    def samples(self) -> int:
        """Samples added so far on this rank."""
        return self._sums.samples

    def reduce(self, key: Key, x: Tensor) -> LayerGram:
        """The doubly centred Gram matrix of a layer."""
        return layer_gram(x, self._kernel)

    def start(
        self,
        items: list[list[LayerGram]],
        samples: int,
        total: int | None,
        select: tuple[list[int], list[int]] | None,
    ) -> str:
        """Says what memory the Gram matrices of a batch take."""
        self._select = select
        count = sum(map(len, items))
        n = len(items[0][0].matrix)
        element = items[0][0].matrix.element_size()
        held = 2 * count * n * n * element  # as they come from the hooks, and as rows of one matrix
        if self._sums.permutations:
            held += min(self._sums.permutations * n * n, 1 << 24) * 2 * element
        return (
            f"{count} layers, batches of {samples}: {human_bytes(held)} of Gram matrices, "
            f"whatever the number of batches"
        )

    def add(self, items: list[list[LayerGram]], samples: int, names: list[list[str]]) -> None:
        """Adds one batch.

        Raises:
            ValueError: if layers differ in their number of samples.
        """
        sizes = {
            len(item.matrix): name
            for group, labels in zip(items, names, strict=True)
            for item, name in zip(group, labels, strict=True)
        }
        if len(sizes) > 1:
            listed = ", ".join(f"{name} has {n}" for n, name in sizes.items())
            raise ValueError(
                f'layers differ in the number of samples: {listed}. With spatial="samples" compare '
                "only layers of one size, or take another rule"
            )
        second = items[1] if len(items) > 1 else None
        self._sums.add(items[0], second, samples, self._select)

    def finish(self, rows: int, columns: int) -> Outcome:
        """Adds up over ranks and divides."""
        sums, shape = self._sums, Shape(rows, columns)
        if sums.shape is not None and sums.shape != shape:
            raise ValueError(
                f"this rank compared {sums.shape.rows} x {sums.shape.columns} layers and others "
                f"{rows} x {columns}: every rank must run the same layers"
            )
        own = torch.stack(sums.groups) if sums.groups else torch.zeros(0, shape.size)
        groups = self._team.gather_rows(own.to(torch.float64), shape.size)
        counts = torch.tensor([sums.samples, sums.batches, sums.pairs], dtype=torch.float64)
        counts = self._team.sum(counts)
        total = groups.sum(dim=0)
        error = None
        if self._standard_error == "jackknife":
            error = jackknife(groups, shape)
        elif self._standard_error == "bootstrap":
            error = bootstrap(groups, shape, seed=self._seed)
        p = None
        if sums.permutations:
            empty = torch.zeros(sums.permutations, rows, columns, dtype=torch.float64)
            null = self._team.sum(empty if sums.null is None else sums.null)
            p = p_values(null.to(total.device), shape.cross(total))
        samples, batches, pairs = counts.tolist()
        return Outcome(
            shape.cka(total), shape.selves(total), int(samples), int(batches), pairs, error, p
        )

    def close(self) -> None:
        """Drops the sums."""
        self._sums.groups.clear()
        self._sums.null = None
