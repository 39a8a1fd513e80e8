"""Similarity between layers: the matrix of a network, one pair, small calls, how cost grows."""

from __future__ import annotations

import os

from ...ops.similarity import RBF, Cosine, Linear, Polynomial
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
RESNET18_CONVS = (
    (64 * 32 * 32,) * 5 + (128 * 16 * 16,) * 5 + (256 * 8 * 8,) * 5 + (512 * 4 * 4,) * 5
)


_SIX_NETWORK_LAYERS = (16384,) * 2 + (8192,) * 2 + (4096,) * 2


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    grams = (64, 256) if quick else (64, 256, 1024, 4096)
    return [
        _network(quick),
        _network_gradient(quick),
        _two_networks(quick),
        *(_minibatch(quick, gradient) for gradient in (False, True)),
        _feature_space_pair(quick),
        _rbf_pair(quick),
        *(_hsic_pair(quick, gradient) for gradient in (False, True)),
        _gram_gradient(quick),
        *(_gram(n, 1024 if quick else 4096) for n in grams),
        *_kernels(quick),
        overhead.case("O1", backward=False),
        overhead.case("O1-grad", backward=True),
        *(_scaling("n", n, n, 4096, 8) for n in ((64,) if quick else (16, 64, 256, 1024))),
        *(_scaling("d", d, 128, d, 8) for d in ((1024,) if quick else (64, 1024, 16384, 65536))),
        *(_scaling("L", L, 128, 1024, L) for L in ((8,) if quick else (2, 8, 32, 128))),
        *(_threads(count, quick) for count in thread_counts()),
    ]


def thread_counts() -> list[int]:
    """Powers of two up to the number of cores, and that number."""
    cores = os.cpu_count() or 1
    return [*(2**k for k in range(cores.bit_length()) if 2**k < cores), cores]


def _network(quick: bool) -> AnyCase:
    n, factor = (64, 16) if quick else (256, 1)
    work = FeatureWork("cka_matrix", n, tuple(d // factor for d in RESNET18_CONVS))
    size = f"n={n}, d {span(work.dims)}" if quick else "n=256, d 8k to 64k"
    return work.case(
        MATRIX_BASELINES,
        id="S1",
        suite=SUITE,
        title=f"unbiased CKA matrix, 20 layers, {size}",
        reason="the 20 convolutions of a CIFAR ResNet-18, shortcuts included, at batch 256",
        summary=True,
    )


def _network_gradient(quick: bool) -> AnyCase:
    n, factor = (32, 16) if quick else (128, 1)
    work = FeatureWork(
        "cka_matrix", n, tuple(d // factor for d in _SIX_NETWORK_LAYERS), gradient=True
    )
    return work.case(
        ("reference", "eager"),
        id="matrix-grad",
        suite=SUITE,
        title=f"unbiased CKA matrix of 6 layers, forward and backward, n={n}, d {span(work.dims)}",
        reason="a penalty of one's own on any entries of the matrix: every layer gets a gradient",
    )


def _two_networks(quick: bool) -> AnyCase:
    n, factor = (32, 16) if quick else (256, 1)
    dims = tuple(d // factor for d in _SIX_NETWORK_LAYERS)
    work = FeatureWork("cka_matrix", n, (*dims, *dims[:4]), groups=(6, 4))
    return work.case(
        ("reference", "eager"),
        id="matrix-two-lists",
        suite=SUITE,
        title=f"unbiased CKA matrix of 6 by 4 layers, n={n}, d {span(work.dims)}",
        reason="layers of one network against those of another on the same samples",
    )


def _minibatch(quick: bool, gradient: bool) -> AnyCase:
    n, factor = (16, 16) if quick else (32, 1)
    dims = tuple(d // factor for d in RESNET18_CONVS)
    work = FeatureWork("hsic_matrix", n, dims, gradient=gradient)
    return work.case(
        ("reference", "eager"),
        id="hsic-minibatch-grad" if gradient else "hsic-minibatch",
        suite=SUITE,
        title=f"unbiased HSIC matrix, 20 layers, one minibatch of n={n}, d {span(work.dims)}"
        + _direction(gradient),
        reason="minibatch CKA adds such matrices over a data set: small n, so bytes decide",
    )


def _hsic_pair(quick: bool, gradient: bool) -> AnyCase:
    n, d = (128, 1024) if quick else (1024, 4096)
    return FeatureWork("hsic", n, (d, d), gradient=gradient).case(
        ("reference", "eager"),
        id="hsic-pair-grad" if gradient else "hsic-pair",
        suite=SUITE,
        title=f"unbiased HSIC of one pair, n={n}, d={d}{_direction(gradient)}",
        reason="a test of dependence at a sample size where the Gram matrices are the work",
    )


def _direction(gradient: bool) -> str:
    return ", forward and backward" if gradient else ""


def _gram_gradient(quick: bool) -> AnyCase:
    n, d = (64, 1024) if quick else (1024, 4096)
    return FeatureWork("gram", n, (d,), gradient=True).case(
        ("reference", "eager"),
        id="gram-grad",
        suite=SUITE,
        title=f"double-centred Gram matrix, n={n}, d={d}, forward and backward",
        reason="a loss of one's own on similarities between samples",
    )


def _gram(n: int, d: int) -> AnyCase:
    work = FeatureWork("gram", n, (d,))
    return work.case(
        ("reference", "eager", "blocked_mm"),
        id=f"gram-{n}",
        suite=SUITE,
        title=f"double-centred Gram matrix, n={n}, d={d}",
        reason="the one product everything else is made of, against half of torch's",
        series=Series(
            f"Gram matrix, d={d}", "n", n, order="n² d", predicted=float(work.cost.operations)
        ),
        # bfloat16 products of bfloat16 features that were centred and rounded once more.
        bounds={"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3},
    )


def _kernels(quick: bool) -> list[AnyCase]:
    n, d = (128, 256) if quick else (1024, 512)
    result: list[AnyCase] = []
    kernels = (
        ("linear", Linear()),
        ("rbf", RBF(0.5)),
        ("polynomial", Polynomial(2)),
        ("cosine", Cosine()),
    )
    for name, kernel in kernels:
        for gradient in (False, True):
            direction = "forward and backward" if gradient else "forward"
            result.append(
                FeatureWork("cka", n, (d, d), kernel=kernel, gradient=gradient).case(
                    ("reference", "eager"),
                    id=f"kernel-{name}-grad" if gradient else f"kernel-{name}",
                    suite=SUITE,
                    title=f"unbiased CKA of one pair, {name} kernel, {direction}, n={n}, d={d}",
                    reason="a validation batch of a penultimate layer under each kernel function",
                )
            )
    return result


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


_FIXED = {"n": "d=4096, L=8", "d": "n=128, L=8", "L": "n=128, d=1024"}


def _scaling(axis: str, x: int, n: int, d: int, layers: int) -> AnyCase:
    work = FeatureWork("cka_matrix", n, (d,) * layers)
    return work.case(
        ("reference", "eager", "eager_centred"),
        id=f"scale-{axis}-{x}",
        suite=SUITE,
        title=f"unbiased CKA matrix, {layers} layers, n={n}, d={d}",
        reason=f"how cost grows with {axis}: Gram matrices cost L n² d, all pairs L² n²",
        series=Series(
            f"CKA matrix, {_FIXED[axis]}",
            axis,
            x,
            order="L n² d + L² n²",
            predicted=float(work.cost.operations),
        ),
    )


def _threads(count: int, quick: bool) -> AnyCase:
    n, d = (64, 1024) if quick else (256, 16384)
    plural = "s" if count > 1 else ""
    return FeatureWork("cka_matrix", n, (d,) * 8).case(
        ("eager", "eager_centred"),
        id=f"scale-threads-{count}",
        suite=SUITE,
        title=f"unbiased CKA matrix, 8 layers, n={n}, d={d}, {count} thread{plural}",
        reason="how time falls with threads, whatever number the run itself is given",
        series=Series(
            f"CKA matrix, n={n}, d={d}, L=8",
            "threads",
            count,
            order="1 / threads",
            predicted=1 / count,
        ),
        threads=count,
    )
