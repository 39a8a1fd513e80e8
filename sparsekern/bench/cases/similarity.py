"""Similarity between layers: the matrix of a network, one pair, small calls, how cost grows."""

from __future__ import annotations

from ...ops.similarity import RBF
from .. import overhead
from ..case import AnyCase, Series
from ..features import FeatureWork, span

SUITE = "similarity"
MATRIX_BASELINES = (
    "reference",
    "eager",
    "eager_centred",
    "pytorch_cka",
    "pytorch_cka_hsic",
    "torch_cka",
    "torch_cka_hsic",
    "ckatorch",
    "ckatorch_hsic1",
    "authors",
)
PAIR_BASELINES = ("reference", "eager", "pytorch_cka", "torch_cka", "ckatorch")
RBF_BASELINES = ("reference", "eager", "ckatorch")
# Outputs of the convolutions of a CIFAR ResNet-18: 5 per stage, shortcuts included.
_RESNET18_CONVS = (
    (64 * 32 * 32,) * 5 + (128 * 16 * 16,) * 5 + (256 * 8 * 8,) * 5 + (512 * 4 * 4,) * 5
)


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    return [
        _network(quick),
        _feature_space_pair(quick),
        _rbf_pair(quick),
        overhead.case("O1", backward=False),
        overhead.case("O1-grad", backward=True),
        *(_scaling("n", n, n, 4096) for n in ((64,) if quick else (16, 64, 256, 1024))),
        *(_scaling("d", d, 128, d) for d in ((1024,) if quick else (64, 1024, 16384, 65536))),
    ]


def _network(quick: bool) -> AnyCase:
    n, factor = (64, 16) if quick else (256, 1)
    work = FeatureWork("cka_matrix", n, tuple(d // factor for d in _RESNET18_CONVS))
    size = f"n={n}, d {span(work.dims)}" if quick else "n=256, d 8k to 64k"
    return work.case(
        MATRIX_BASELINES,
        id="S1",
        suite=SUITE,
        title=f"unbiased CKA matrix, 20 layers, {size}",
        reason="the 20 convolutions of a CIFAR ResNet-18, shortcuts included, at batch 256",
        summary=True,
    )


def _feature_space_pair(quick: bool) -> AnyCase:
    n, d = (1_500, 128) if quick else (10_000, 512)
    return FeatureWork("cka", n, (d, d)).case(
        PAIR_BASELINES,
        id="S4",
        suite=SUITE,
        title=f"unbiased linear CKA of one pair, n={n}, d={d}",
        reason="a penultimate layer over a whole test set: d small against n, so d x d products",
        summary=True,
    )


def _rbf_pair(quick: bool) -> AnyCase:
    n, d = (800, 128) if quick else (4_000, 512)
    return FeatureWork("cka", n, (d, d), kernel=RBF(0.5)).case(
        RBF_BASELINES,
        id="S5",
        suite=SUITE,
        title=f"unbiased RBF CKA of one pair, n={n}, d={d}, median bandwidth",
        reason="the largest n at which people still take RBF CKA in one piece; exact median",
        summary=True,
    )


def _scaling(axis: str, x: int, n: int, d: int) -> AnyCase:
    work = FeatureWork("cka_matrix", n, (d,) * 8)
    return work.case(
        ("reference", "eager", "eager_centred"),
        id=f"scale-{axis}-{x}",
        suite=SUITE,
        title=f"unbiased CKA matrix, 8 layers, n={n}, d={d}",
        reason=f"how cost grows with {axis}: the Gram matrices cost n²d, the features n d bytes",
        series=Series(
            f"CKA matrix of 8 layers, {'d=4096' if axis == 'n' else 'n=128'}",
            axis,
            x,
            order="n² d",
            predicted=float(work.cost.operations),
        ),
    )
