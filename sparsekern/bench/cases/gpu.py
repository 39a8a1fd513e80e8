"""Similarity on a GPU: G1 to G3, at sizes that fill one. There only where torch sees a GPU.

``sparsekern bench --suite gpu --device cuda``. float32 follows the matmul precision of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...ops.similarity import gram
from .. import baselines, gate
from ..case import AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..features import FeatureWork, span, symmetric_flops
from ..inputs import double
from .similarity import RESNET18_CONVS

SUITE = "gpu"
_EAGER = "eager PyTorch"
# Outputs of the blocks of an ImageNet ResNet-50, stage by stage.
_RESNET50_STAGES = (3, 4, 6, 3)
_RESNET50_BLOCKS = (802816,) * 3 + (401408,) * 4 + (200704,) * 6 + (100352,) * 3


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    return gpu_cases(quick) if torch.cuda.is_available() else []


def gpu_cases(quick: bool) -> list[AnyCase]:
    """The cases, whether there is a GPU or not."""
    shrink = 256 if quick else 1
    return [
        _network(16 if quick else 256, shrink),
        *(_loss(n, shrink) for n in ((8,) if quick else (8, 32, 128))),
        *(_gram(n, 4096 // shrink) for n in ((40,) if quick else (4096, 8192, 16384))),
    ]


def bounds() -> dict[str, float]:
    """The largest errors: features are rounded to tf32 where the matmul precision allows it."""
    rounded = torch.get_float32_matmul_precision() == "medium"
    return {
        "float64": 1e-10,
        "float32": 1e-2 if rounded else 1e-5,
        "bfloat16": 3e-2,
        "float16": 1e-2,
    }


def _compiled(
    name: str, function: Callable[[list[Tensor]], Tensor], work: FeatureWork
) -> Contender:
    """torch.compile of a baseline; compiled with its first call."""
    call = work.outputs(torch.compile(function))
    return Contender(name, "torch.compile of eager", call, group=_EAGER)


def _network(n: int, shrink: int) -> AnyCase:
    work = FeatureWork("cka_matrix", n, tuple(d // shrink for d in RESNET18_CONVS))

    def centred(xs: list[Tensor]) -> Tensor:
        return baselines.eager_cka_matrix(xs, centred=True)

    pairwise = Contender(
        "torch_cka_formula", "formula of torch_cka", lambda xs: [pairwise_cka(xs)], group=_EAGER
    )
    return work.case(
        (),
        contenders=(
            *work.contenders(("reference", "eager", "eager_centred")),
            _compiled("torch_compile", centred, work),
            pairwise,
        ),
        id="G1",
        suite=SUITE,
        title=f"unbiased CKA matrix, {len(work.dims)} layers, n={n}, d {span(work.dims)}",
        reason="S1 on a GPU: every feature is to be read once, at the speed of memory",
        bounds=bounds(),
    )


def pairwise_cka(xs: Sequence[Tensor]) -> Tensor:
    """CKA pair by pair: the second Gram matrix and three of Song et al.'s sums anew each time."""

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n = len(k)
        one = torch.ones(n, 1, dtype=k.dtype, device=k.device)
        sums = one.T @ k @ one * (one.T @ m @ one) / ((n - 1) * (n - 2))
        products = one.T @ k @ m @ one * 2 / (n - 2)
        return (torch.trace(k @ m) + (sums - products).squeeze()) / (n * (n - 3))

    rows = []
    for x in xs:
        k = (x @ x.T).fill_diagonal_(0)
        own = hsic(k, k)
        row = []
        for y in xs:
            m = (y @ y.T).fill_diagonal_(0)
            row.append(hsic(k, m) / (own.sqrt() * hsic(m, m).sqrt()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _loss(n: int, shrink: int) -> AnyCase:
    dims = tuple(d // shrink for d in _RESNET50_BLOCKS)
    work = FeatureWork("cka_sum", n, dims, _RESNET50_STAGES)

    def eager(xs: list[Tensor]) -> Tensor:
        return baselines.eager_loss(work.split(xs), centred=False)

    return work.case(
        (),
        contenders=(
            *work.contenders(("reference", "eager", "eager_centred", "eager_backward")),
            _compiled("torch_compile", eager, work),
        ),
        id=f"G2-{n}",
        suite=SUITE,
        title=f"CKA-SR loss, forward and backward, 16 blocks of a ResNet-50, n={n}",
        reason="the regulariser at ImageNet size: two reading passes and a writing one",
        bounds=bounds(),
    )


def _gram(n: int, d: int) -> AnyCase:
    def inputs(dtype: torch.dtype, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(n, d, generator=generator).to(dtype)]

    def wanted(xs: list[Tensor]) -> list[Tensor]:
        x = double(xs)[0]
        return [x @ x.T]

    return Case(
        id=f"G3-{n}",
        suite=SUITE,
        title=f"Gram matrix, n={n}, d={d}",
        reason="symmetric: torch.mm does every product twice",
        shapes=f"n={n}, d={d}",
        inputs=inputs,
        oracle=wanted,
        error=gate.relative_distance,
        bounds=bounds(),
        cost=Cost(operations=symmetric_flops(n, d), values=n * d + n * n),
        contenders=(
            *sparsekern_contenders(lambda xs: [gram(xs[0])]),
            Contender("torch_mm", "torch.mm", lambda xs: [xs[0] @ xs[0].T], group=_EAGER),
        ),
    )
