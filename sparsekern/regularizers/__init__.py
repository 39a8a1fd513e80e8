"""Plug-in regularisers: attach one to a model, add its value to the loss."""

from .cka_sparsity import CKASparsity

__all__ = ["CKASparsity"]
