"""RigL: rigging the lottery, sparse training that grows where the gradient is large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.layers import MaskedConv2d, MaskedLinear
from ..ops import checks
from .rst import RST
from .selection import keep_best


class RigL(RST):
    """Random masks of which a falling share moves, every so many steps, to the largest gradients.

    At the steps ``t = ΔT, 2ΔT, … < T_end`` each layer of ``n`` weights drops the
    ``⌊f(t) n⌋`` kept ones of smallest magnitude, ``f(t) = α/2 (1 + cos(π t / T_end))``, and grows
    as many where ``|∂L/∂W|`` is largest among all that are pruned then, those just dropped
    included. Grown weights begin at 0. (Evci et al. 2020, "Rigging the Lottery: Making All Tickets
    Winners", algorithm 1.) A layer that is dense stays so.

    The gradient is that of the step just made, so ``step()`` comes before the next ``zero_grad``;
    in the paper the update takes the place of a step, here it follows one. Masked layers of
    :mod:`sparsekern.nn` give the dense gradient in those steps only.

    Args:
        sparsity, exclude, min_per_layer: see :class:`Pruner`.
        end: T_end, in optimizer steps; in the paper three quarters of the training.
        every: ΔT, in optimizer steps.
        fraction: α.
        distribution, seed, rescale: of the first masks; see :class:`RST`.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        end: int,
        every: int = 100,
        fraction: float = 0.3,
        distribution: str = "erk",
        seed: int = 0,
        rescale: bool = False,
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        super().__init__(
            sparsity,
            distribution=distribution,
            seed=seed,
            rescale=rescale,
            exclude=exclude,
            min_per_layer=min_per_layer,
        )
        checks.real_numbers(end=end, every=every, fraction=fraction)
        if end < 1 or every < 1:
            raise ValueError(f"end and every must be positive, got end={end}, every={every}")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, got {fraction}")
        self.end, self.every, self.fraction = end, every, float(fraction)

    def fraction_at(self, step: int) -> float:
        """The share of each layer's kept weights that moves at a step."""
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.end))

    def _is_update(self, step: int) -> bool:
        return step % self.every == 0 and 0 < step < self.end

    def _start(self) -> None:
        super()._start()
        self._ask_for_gradients()

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        super()._load_own_state(state)
        self._ask_for_gradients()

    def _after_step(self) -> None:
        if self._is_update(self.steps):
            self._update()
        self._ask_for_gradients()

    def _ask_for_gradients(self) -> None:
        """Masked layers give the dense gradient where the next step is an update."""
        kind = "dense" if self._is_update(self.steps + 1) else "masked"
        for weight in self._weights:
            for owner in weight.owners:
                if isinstance(owner, MaskedLinear | MaskedConv2d):
                    owner.weight_grad = kind

    @torch.no_grad()
    def _update(self) -> None:
        gradients = [self._gradient(index) for index in range(len(self._weights))]
        growable, counts = self._growable(), self._counts
        share = self.fraction_at(self.steps)
        remaining = []
        for parameter, mask, grow, count in zip(
            self._parameters, self._masks, growable, counts, strict=True
        ):
            dropped = min(int(share * count), int(grow.sum()))
            remaining += keep_best([parameter.abs()], [mask], count - dropped)
        self._set(remaining)
        masks = []
        for gradient, places, mask, count, now in zip(
            gradients, self._growable(), self._masks, counts, self._counts, strict=True
        ):
            (grown,) = keep_best([gradient.abs()], [places], count - now)
            masks.append(mask | grown)
        self._set(masks)

    def _gradient(self, index: int) -> Tensor:
        weight = self._weights[index]
        if weight.parameter.grad is None:
            raise RuntimeError(
                f"{weight.name} has no gradient: RigL grows weights by that of the step just made, "
                "so call step() before zero_grad()"
            )
        return weight.parameter.grad

    def _choose(self, kept: int, allowed: list[Tensor]) -> list[Tensor]:
        if not self._started:
            return super()._choose(kept, allowed)
        magnitudes = [parameter.detach().abs() for parameter in self._parameters]
        return keep_best(magnitudes, allowed, kept, min_per_layer=self.min_per_layer)
