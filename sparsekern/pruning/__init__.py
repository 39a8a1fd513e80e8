"""Methods that make networks sparse: masks over training time, under one protocol."""

from .ap import AP
from .art import ART
from .base import Pruner
from .dead_neurons import DeadNeuronRecorder
from .gmp import GMP
from .grasp import GraSP
from .lth import LTH
from .magnitude import MagnitudePruner
from .merging import MergeReport, merge_layers
from .optg import OptG
from .rigl import RigL
from .rst import RST
from .set import SET
from .snip import SNIP
from .stop_rule import StopRule

__all__ = [
    "AP",
    "ART",
    "GMP",
    "LTH",
    "RST",
    "SET",
    "SNIP",
    "DeadNeuronRecorder",
    "GraSP",
    "MagnitudePruner",
    "MergeReport",
    "OptG",
    "Pruner",
    "RigL",
    "StopRule",
    "merge_layers",
]
