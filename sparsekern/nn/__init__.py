"""Layers with masked weights, and conversion of whole models to them and back."""

from .conversion import from_pruned, sparsify, to_dense
from .layers import MaskedConv2d, MaskedLinear

__all__ = ["MaskedConv2d", "MaskedLinear", "from_pruned", "sparsify", "to_dense"]
