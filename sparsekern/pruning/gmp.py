"""GMP: gradual magnitude pruning."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..nn.densities import kept_in_all
from ..ops import checks
from .magnitude import MagnitudePruner


class GMP(MagnitudePruner):
    """Prunes by magnitude while it trains, with a sparsity that rises by a cubic schedule.

    ``s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))³`` at the steps ``t = t_0 + k Δt``, ``k``
    from 0 to ``n``; between them the masks stay. (Zhu and Gupta 2017, "To prune, or not to prune:
    exploring the efficacy of pruning for model compression", equation 1, who prune each layer to
    ``s_t``: ``distribution="uniform"``.) What is pruned stays pruned.

    Args:
        sparsity: s_f; see :class:`Pruner`.
        end: no step after this one changes a mask: ``n = (end - begin) // every``, and the final
            sparsity is reached at ``begin + n · every``.
        begin: t_0.
        every: Δt, in optimizer steps.
        initial: s_i.
        distribution, exclude, min_per_layer: see :class:`MagnitudePruner`.
    """

    prunes_later = True

    def __init__(
        self,
        sparsity: float,
        *,
        end: int,
        begin: int = 0,
        every: int = 100,
        initial: float = 0.0,
        distribution: str = "global",
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(
            sparsity, distribution=distribution, exclude=exclude, min_per_layer=min_per_layer
        )
        checks.real_numbers(end=end, begin=begin, every=every, initial=initial)
        if not 0 <= initial <= sparsity:
            raise ValueError(f"initial must be from 0 to the sparsity {sparsity}, got {initial}")
        if every < 1 or begin < 0 or end < begin + every:
            raise ValueError(
                "begin must not be negative, every be positive, and end be at least begin + every; "
                f"got begin={begin}, every={every}, end={end}"
            )
        self.begin, self.every, self.initial = begin, every, float(initial)
        self.events = (end - begin) // every

    def sparsity_at(self, step: int) -> float:
        """The sparsity that the schedule asks for after so many steps."""
        done = min(max(step - self.begin, 0) // self.every / self.events, 1.0)
        if done == 1.0:
            return self.sparsity_target
        if step < self.begin:
            return 0.0
        return self.sparsity_target + (self.initial - self.sparsity_target) * (1 - done) ** 3

    def _start(self) -> None:
        if self.begin == 0:
            self._follow_schedule()

    def _after_step(self) -> None:
        since = self.steps - self.begin
        if since % self.every == 0 and 0 <= since <= self.events * self.every:
            self._follow_schedule()

    def _follow_schedule(self) -> None:
        kept = kept_in_all(self._total, self.sparsity_at(self.steps))
        if kept < self.kept:
            self._prune_to(kept)
