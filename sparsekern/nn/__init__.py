"""Layers with masked weights, conversion of whole models to them and back, and what they gain."""

from .compressed import CompressedLinear
from .conversion import compress, from_masks, from_pruned, sparsify, to_dense
from .layers import MaskedConv2d, MaskedLinear
from .summary import LayerSummary, ModelSummary, summary

__all__ = [
    "CompressedLinear",
    "LayerSummary",
    "MaskedConv2d",
    "MaskedLinear",
    "ModelSummary",
    "compress",
    "from_masks",
    "from_pruned",
    "sparsify",
    "summary",
    "to_dense",
]
