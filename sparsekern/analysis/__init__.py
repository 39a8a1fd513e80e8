"""CKA between models over whole data sets, and other measures on the same features."""

from .compare import CKA
from .dry_run import model_layers
from .features import FeatureRule
from .given import compare_features
from .layers import LayerInfo
from .measures import cknna, mutual_knn, procrustes, pwcca, rsa, svcca
from .result import CKAResult
from .uncertainty import chance_level, permutation_test

__all__ = [
    "CKA",
    "CKAResult",
    "FeatureRule",
    "LayerInfo",
    "chance_level",
    "cknna",
    "compare_features",
    "model_layers",
    "mutual_knn",
    "permutation_test",
    "procrustes",
    "pwcca",
    "rsa",
    "svcca",
]
