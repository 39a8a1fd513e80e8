"""Layers with masked weights, conversion of whole models to them and back, and what they gain."""

from .compressed import CompressedLinear
from .conversion import compress, from_masks, from_pruned, pack, sparsify, to_dense, to_masked
from .layers import MaskedConv2d, MaskedLinear
from .packed import PackedLinear
from .summary import LayerSummary, ModelSummary, summary

__all__ = [
    "CompressedLinear",
    "LayerSummary",
    "MaskedConv2d",
    "MaskedLinear",
    "ModelSummary",
    "PackedLinear",
    "compress",
    "from_masks",
    "from_pruned",
    "pack",
    "sparsify",
    "summary",
    "to_dense",
    "to_masked",
]
