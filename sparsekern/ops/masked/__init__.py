"""Products with masked weights."""

from .compressed import CompressedWeight
from .convolution import masked_conv2d
from .linear import masked_linear, sddmm, spmm
from .packed_linear import packed_linear
from .pattern import SparsityPattern

__all__ = [
    "CompressedWeight",
    "SparsityPattern",
    "masked_conv2d",
    "masked_linear",
    "packed_linear",
    "sddmm",
    "spmm",
]
