"""Methods that make networks sparse: masks over training time, under one protocol."""

from .base import Pruner
from .gmp import GMP
from .lth import LTH
from .magnitude import MagnitudePruner
from .rigl import RigL
from .rst import RST
from .set import SET

__all__ = ["GMP", "LTH", "RST", "SET", "MagnitudePruner", "Pruner", "RigL"]
