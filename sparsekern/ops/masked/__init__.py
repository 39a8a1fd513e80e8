"""Products with masked weights."""

from .convolution import masked_conv2d
from .linear import masked_linear, sddmm, spmm
from .pattern import SparsityPattern

__all__ = ["SparsityPattern", "masked_conv2d", "masked_linear", "sddmm", "spmm"]
