"""Plug-in regularisers: attach one to a model, add its value to the loss."""

from .cka_sparsity import CKASparsity
from .hypersparse import HyperSparse
from .layer_sparsity import LayerSparsity

__all__ = ["CKASparsity", "HyperSparse", "LayerSparsity"]
