"""LayerSparsity: makes whole layers non-negative, so that they can be merged away."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.weights import Weight, find_weights
from ..nn.wrappers import clean_name, unwrap
from ..ops import checks
from ..ops.penalties import layer_sparsity_loss, layer_sparsity_prox_

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LayerSparsity:
    """Pushes all negative weights of a layer towards 0 at once: the layer-sparsity regulariser.

    ``reg()`` is ``Σ_j λ_j ‖min(0, W_j)‖_F`` over the inner layers, in the sense of Hebiri and
    Lederer 2020, "Layer Sparsity in Neural Networks". A layer without negative weights and biases
    between activations that are the identity on [0, ∞) changes nothing that its neighbour could
    not do: :func:`sparsekern.pruning.merge_layers` merges it away.

    The loss alone makes negative weights small and not 0. The proximal step after each optimizer
    step makes them exactly 0, a whole layer in one go::

        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        regularizer.prox_(optimizer.param_groups[0]["lr"])

    Use one of the two, the loss or the step. Under AMP, and with DDP, nothing is different: the
    loss is the same on all ranks.

    Args:
        model: the network, wrapped or not.
        strength: λ: one number for all layers, or one for each.
        layers: names of the layers; None: all linear and convolutional ones but the first and the
            last, in module order. Tied weights count once.
        biases: whether the layers' biases are pushed too, each as a group of its own with its
            layer's strength: a layer with negative ones cannot be merged.

    Attributes:
        layers: the names of the layers.

    Raises:
        TypeError: for something else than a module, and a number or a list of them.
        ValueError: for a strength out of range, a name that no layer has, or a model without an
            inner layer.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float | Sequence[float],
        *,
        layers: Iterable[str] | None = None,
        biases: bool = True,
    ) -> None:
        found = {clean_name(w.name.rpartition(".")[0]): w for w in find_weights(model, (), _LAYERS)}
        if layers is not None and not isinstance(layers, Iterable):
            raise TypeError(f"layers must be names of layers, got {layers!r:.80}")
        self.layers = list(found)[1:-1] if layers is None else list(layers)
        for name in self.layers:
            if name not in found:
                raise ValueError(
                    f"layers names {name!r}: expected linear or convolutional layers of the model, "
                    f"which has {', '.join(found) or 'none'}"
                )
        if not self.layers:
            raise ValueError(
                f"model of type {type(unwrap(model)).__name__} has {len(found)} linear or "
                "convolutional layers, and none between the first and the last to push"
            )
        self.strength = strength
        strengths: list[Any] = [strength] * len(self.layers)
        if isinstance(strength, Sequence) and not isinstance(strength, str):
            strengths = list(strength)
        if len(strengths) != len(self.layers):
            raise ValueError(
                f"strength has {len(strengths)} entries for {len(self.layers)} layers: expected "
                "one number, or one for each"
            )
        for value in strengths:
            if not 0 <= checks.number(value, "strength") < math.inf:
                raise ValueError(f"strength must be finite and not negative, got {value}")
        self._groups: list[tuple[nn.Parameter, float]] = []
        for name, value in zip(self.layers, strengths, strict=True):
            self._groups.append((found[name].parameter, float(value)))
            bias = _bias(found[name])
            if biases and bias is not None:
                self._groups.append((bias, float(value)))
        self._found = {name: found[name] for name in self.layers}

    def __call__(self) -> Tensor:
        """The loss, to be added to the task's: a scalar.

        Raises:
            RuntimeError: after :meth:`remove`.
            ValueError: for weights that are not finite (told on the CPU only).
        """
        self._check_held()
        dtype = functools.reduce(torch.promote_types, (w.dtype for w, _ in self._groups))
        device = self._groups[0][0].device
        weights = [weight.to(device, dtype) for weight, _ in self._groups]
        return layer_sparsity_loss(weights, [strength for _, strength in self._groups])

    @torch.no_grad()
    def prox_(self, step_size: float | Tensor) -> None:
        """The proximal step: each group's negative entries shrink together, or become 0.

        By the factor ``max(0, 1 - η λ / ‖min(0, W)‖_F)``.

        Args:
            step_size: η, the learning rate of the optimizer step just made; a scalar tensor where
                the optimizer keeps it in one.

        Raises:
            RuntimeError: after :meth:`remove`.
            ValueError: for a step size that is negative or not finite, or weights that are not
                finite, with nothing changed in the group.
        """
        self._check_held()
        rate = step_size.item() if isinstance(step_size, Tensor) else step_size
        if not 0 <= checks.number(rate, "step_size") < math.inf:
            raise ValueError(f"step_size must be finite and not negative, got {rate}")
        for weight, strength in self._groups:
            layer_sparsity_prox_(weight, rate * strength)

    @torch.no_grad()
    def negative(self) -> dict[str, float]:
        """Layer name -> how many of its weights, and of its biases, are negative, as a share."""
        shares = {}
        for name, weight in self._found.items():
            bias = _bias(weight)
            tensors = [weight.parameter] if bias is None else [weight.parameter, bias]
            count = sum(int((tensor < 0).sum()) for tensor in tensors)
            shares[name] = count / sum(tensor.numel() for tensor in tensors)
        return shares

    def remove(self) -> None:
        """Lets go of the model's weights."""
        self._groups, self._found = [], {}

    def state_dict(self) -> dict[str, Any]:
        """Empty: the regulariser remembers nothing from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`, as other regularisers do."""

    def __repr__(self) -> str:
        return f"LayerSparsity({', '.join(self.layers)}, strength={self.strength})"

    def _check_held(self) -> None:
        if not self._groups:
            raise RuntimeError("this LayerSparsity was removed from its model: make a new one")


def _bias(weight: Weight) -> nn.Parameter | None:
    """The bias of the first layer that uses the weight."""
    return weight.owners[0]._parameters.get("bias")
