"""HyperSparse: the loss of ART as a plug-in, with its strength that grows from epoch to epoch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.weights import find_weights
from ..ops import checks
from ..ops.penalties import hypersparse_loss


def check_strength(strength: float, growth: float) -> None:
    """Checks the strength of the loss and the factor by which it grows.

    Raises:
        TypeError: for something else than numbers.
        ValueError: for numbers out of range.
    """
    if not 0 <= checks.number(strength, "strength") < math.inf:
        raise ValueError(f"strength must be finite and not negative, got {strength}")
    if not 0 < checks.number(growth, "growth") < math.inf:
        raise ValueError(f"growth must be finite and positive, got {growth}")


class HyperSparse:
    """Pushes the weights below the global threshold of a sparsity towards 0, ever harder.

    ``reg()`` is ``α(e) · L_HS``, with :func:`sparsekern.hypersparse_loss` over all weights and
    ``α(e) = strength · growth^e`` after ``e`` epochs. (Glandorf, Kaiser and Rosenhahn 2023,
    "HyperSparse Neural Networks: Shifting Exploration to Exploitation through Adaptive
    Regularization".) :class:`sparsekern.pruning.ART` is the whole method around it. The value of
    the loss is always 0: what it does is in its gradient.

    Args:
        model: the network, wrapped or not. Its weights are those that pruning would prune: linear,
            convolutional and attention weights, tied ones once; no biases, no normalisation.
        sparsity: the share of weights aimed at, from 0 to 1.
        strength: α before the first epoch has ended; an attribute, free to change.
        growth: by which it is multiplied at each :meth:`epoch`.
        exclude: names or modules to leave alone, with everything inside them.

    Attributes:
        epochs: how often :meth:`epoch` was called.

    Raises:
        TypeError: for something else than a module and numbers.
        ValueError: for arguments out of range, or a model without such weights.

    Example:
        >>> regularizer = sparsekern.regularizers.HyperSparse(model, 0.98)
        >>> loss = criterion(model(images), labels) + regularizer()   # in every step
        >>> regularizer.epoch()                                       # after every epoch
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        *,
        strength: float = 5e-6,
        growth: float = 1.05,
        exclude: Iterable[str | nn.Module] = (),
    ) -> None:
        if not 0 <= checks.number(sparsity, "sparsity") <= 1:
            raise ValueError(f"sparsity must be from 0 to 1, got {sparsity}")
        check_strength(strength, growth)
        self.sparsity, self.strength, self.growth = sparsity, strength, growth
        self.epochs = 0
        self._weights = [weight.parameter for weight in find_weights(model, exclude)]
        if not self._weights:
            raise ValueError(
                f"model of type {type(model).__name__} has no linear, convolutional or attention "
                "weight to push"
            )

    @property
    def alpha(self) -> float:
        """The factor of the present epoch."""
        return self.strength * self.growth**self.epochs

    def __call__(self) -> Tensor:
        """The loss, to be added to the task's: a scalar with the value 0, and its gradient.

        Raises:
            RuntimeError: after :meth:`remove`.
            ValueError: for weights that are not finite (told on the CPU only).
        """
        if not self._weights:
            raise RuntimeError("this HyperSparse was removed from its model: make a new one")
        dtype = functools.reduce(torch.promote_types, (w.dtype for w in self._weights))
        device = self._weights[0].device
        return self.alpha * hypersparse_loss(
            [weight.to(device, dtype) for weight in self._weights], self.sparsity
        )

    def epoch(self) -> None:
        """To be called at the end of every epoch: the strength grows."""
        self.epochs += 1

    def remove(self) -> None:
        """Lets go of the model's weights."""
        self._weights = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: how far the strength has grown."""
        return {"epochs": self.epochs, "strength": self.strength}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken."""
        self.epochs, self.strength = int(state["epochs"]), float(state["strength"])

    def __repr__(self) -> str:
        return (
            f"HyperSparse({len(self._weights)} weights, sparsity={self.sparsity}, "
            f"strength={self.strength}, growth={self.growth}, epochs={self.epochs})"
        )
