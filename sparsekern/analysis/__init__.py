"""CKA between models over whole data sets, and other measures on the same features."""

from .compare import CKA, model_layers
from .features import FeatureRule
from .layers import LayerInfo
from .result import CKAResult
from .uncertainty import chance_level, permutation_test

__all__ = [
    "CKA",
    "CKAResult",
    "FeatureRule",
    "LayerInfo",
    "chance_level",
    "model_layers",
    "permutation_test",
]
