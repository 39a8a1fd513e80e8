"""Fully connected ReLU networks, as one flat sequence of layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

DEPTH = 6


def groups(depth: int) -> list[list[str]]:
    """All hidden layers, after their ReLU, are one group."""
    return [[f"relu{layer}" for layer in range(1, depth + 1)]]


class MLP(nn.Sequential):
    """Hidden layers with ReLU and a linear classifier on the flattened image.

    Args:
        hidden: neurons of each hidden layer.
        inputs: values of an image.
        classes: outputs.
    """

    def __init__(self, hidden: Sequence[int], inputs: int, classes: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, neurons in enumerate(hidden, start=1):
            layers[f"fc{index}"] = nn.Linear(inputs, neurons)
            layers[f"relu{index}"] = nn.ReLU()
            inputs = neurons
        layers["fc"] = nn.Linear(inputs, classes)
        super().__init__(layers)
        for name, module in self.named_children():
            if isinstance(module, nn.Linear) and name != "fc":
                # Keeps the activations' scale over the layers (He et al. 2015).
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
