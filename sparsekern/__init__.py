"""Similarity and sparsity for PyTorch: fused kernels, and the regularisers built on them."""

from . import regularizers
from ._version import __version__
from .dispatch import backend
from .info import info
from .ops.selection import global_masks, magnitude_threshold
from .ops.similarity import (
    RBF,
    Cosine,
    Linear,
    Polynomial,
    cka,
    cka_matrix,
    cka_sum,
    gram,
    hsic,
    hsic_matrix,
)

__all__ = [
    "RBF",
    "Cosine",
    "Linear",
    "Polynomial",
    "__version__",
    "backend",
    "cka",
    "cka_matrix",
    "cka_sum",
    "global_masks",
    "gram",
    "hsic",
    "hsic_matrix",
    "info",
    "magnitude_threshold",
    "regularizers",
]
