"""Methods that make networks sparse: masks over training time, under one protocol."""

from .base import Pruner
from .rst import RST

__all__ = ["RST", "Pruner"]
