"""Similarity and sparsity for PyTorch: fused kernels, and the regularisers built on them."""

import importlib
from typing import TYPE_CHECKING, Any

from . import nn
from ._version import __version__
from .dispatch import backend
from .info import info
from .ops.activity import DeadNeuronRate, dead_neuron_rate
from .ops.masked import SparsityPattern, masked_conv2d, masked_linear, sddmm, spmm
from .ops.penalties import (
    hypersparse_backward_,
    hypersparse_loss,
    layer_sparsity_loss,
    layer_sparsity_prox_,
)
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

if TYPE_CHECKING:
    from . import analysis, pruning, regularizers

__all__ = [
    "RBF",
    "Cosine",
    "DeadNeuronRate",
    "Linear",
    "Polynomial",
    "SparsityPattern",
    "__version__",
    "analysis",
    "backend",
    "cka",
    "cka_matrix",
    "cka_sum",
    "dead_neuron_rate",
    "global_masks",
    "gram",
    "hsic",
    "hsic_matrix",
    "hypersparse_backward_",
    "hypersparse_loss",
    "info",
    "layer_sparsity_loss",
    "layer_sparsity_prox_",
    "magnitude_threshold",
    "masked_conv2d",
    "masked_linear",
    "nn",
    "pruning",
    "regularizers",
    "sddmm",
    "spmm",
]


_ON_DEMAND = ("analysis", "pruning", "regularizers")


def __getattr__(name: str) -> Any:
    # What not everybody needs is imported when it is asked for.
    if name in _ON_DEMAND:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
