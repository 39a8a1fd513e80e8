"""Methods that make networks sparse: masks over training time, under one protocol."""

from .base import Pruner
from .gmp import GMP
from .grasp import GraSP
from .lth import LTH
from .magnitude import MagnitudePruner
from .optg import OptG
from .rigl import RigL
from .rst import RST
from .set import SET
from .snip import SNIP

__all__ = [
    "GMP",
    "LTH",
    "RST",
    "SET",
    "SNIP",
    "GraSP",
    "MagnitudePruner",
    "OptG",
    "Pruner",
    "RigL",
]
