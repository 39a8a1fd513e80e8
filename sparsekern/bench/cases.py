"""The registry of cases: what is measured, at which shapes and why, and what the floor is.

A :class:`FeatureCase` is one call on lists of features; everything about it is data. The other
cases (host overhead, a training step) name the function that measures them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ..ops.similarity import RBF, Linear
from ..ops.similarity.kernels import Kernel

SUITES = ("similarity", "regularizers")
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
LOSS_BASELINES = (
    "reference",
    "eager",
    "eager_centred",
    "eager_backward",
    "pytorch_cka",
    "ckatorch",
    "authors",
)


@dataclass(frozen=True)
class FeatureCase:
    """One operator on seeded features, forward or forward and backward.

    Attributes:
        id: what ``--case`` selects; a family (``S2`` of ``S2-imagenet``) selects all its cases.
        suite: one of :data:`SUITES`.
        title: the work, in a few words.
        reason: why these shapes.
        operation: ``"cka_matrix"`` (all pairs of one list), ``"cka"`` (one pair), or
            ``"cka_sum"`` (the CKA-SR loss and its gradient).
        n: samples.
        dims: features of each layer.
        baselines: names of contenders, in the order of the table.
        groups: for ``"cka_sum"``, how many consecutive layers each stage has.
        kernel: the kernel function of all contenders.
        quick: the smaller ``(n, dims)`` that ``--quick`` runs in its place, or None to skip it.
    """

    id: str
    suite: str
    title: str
    reason: str
    operation: str
    n: int
    dims: tuple[int, ...]
    baselines: tuple[str, ...]
    groups: tuple[int, ...] = ()
    kernel: Kernel = field(default_factory=Linear)
    quick: tuple[int, tuple[int, ...]] | None = None

    @property
    def backward(self) -> bool:
        """Whether the gradient with respect to every layer is part of the work."""
        return self.operation == "cka_sum"

    @property
    def feature_space(self) -> bool:
        """Whether the d x d products are fewer than the n x n ones (linear kernel, one pair)."""
        return (
            self.operation == "cka"
            and isinstance(self.kernel, Linear)
            and _pair_flops(self.n, *self.dims) < sum(symmetric_flops(self.n, d) for d in self.dims)
        )

    @property
    def flops(self) -> int:
        """Operations of the matrix products that must be done; symmetric ones counted half."""
        if self.feature_space:
            return _pair_flops(self.n, *self.dims)
        forward = sum(symmetric_flops(self.n, d) for d in self.dims)
        backward = sum(2 * self.n * self.n * d for d in self.dims) if self.backward else 0
        return forward + backward

    def bytes(self, element: int) -> int:
        """Bytes that must move: each pass reads its inputs once and writes its outputs once.

        Args:
            element: bytes of one feature.
        """
        features = self.n * sum(self.dims) * element
        return 3 * features if self.backward else features

    def error_bound(self, dtype: str) -> float:
        """The largest error (see :mod:`sparsekern.bench.gate`) at which a time still counts."""
        return {"float64": 1e-10, "float32": 1e-5}.get(dtype, 1e-2)


@dataclass(frozen=True)
class OverheadCase:
    """Host cost of one small operator call, beside torch's own smallest ones."""

    id: str
    suite: str
    title: str
    reason: str
    n: int
    d: int
    backward: bool
    baselines: tuple[str, ...] = ("torch_mul", "custom_op")


@dataclass(frozen=True)
class TrainingCase:
    """What a regulariser adds to a training step."""

    id: str
    suite: str
    title: str
    reason: str
    batch: int
    image: int
    quick_batch: int
    samples: int = 8
    every: int = 5
    baselines: tuple[str, ...] = ("eager", "authors")


Case: TypeAlias = FeatureCase | OverheadCase | TrainingCase


def symmetric_flops(n: int, d: int) -> int:
    """Operations of the lower triangle of ``X Xᵀ`` for X of shape (n, d), diagonal included."""
    return n * (n + 1) * d


def _pair_flops(n: int, dx: int, dy: int) -> int:
    """Operations of ``XᵀX``, ``YᵀY`` (triangles) and ``XᵀY`` for centred (n, dx) and (n, dy)."""
    return symmetric_flops(dx, n) + symmetric_flops(dy, n) + 2 * n * dx * dy


# Outputs of the convolutions of a CIFAR ResNet-18: 5 per stage, shortcuts included.
_RESNET18_CONVS = (
    (64 * 32 * 32,) * 5 + (128 * 16 * 16,) * 5 + (256 * 8 * 8,) * 5 + (512 * 4 * 4,) * 5
)
# Outputs of the residual blocks of a CIFAR ResNet-20 and of an ImageNet ResNet-18.
_RESNET20_BLOCKS = (16 * 32 * 32,) * 3 + (32 * 16 * 16,) * 3 + (64 * 8 * 8,) * 3
_IMAGENET_BLOCKS = (
    (64 * 56 * 56,) * 2 + (128 * 28 * 28,) * 2 + (256 * 14 * 14,) * 2 + (512 * 7 * 7,) * 2
)


def _smaller(dims: Iterable[int], factor: int) -> tuple[int, ...]:
    return tuple(d // factor for d in dims)


def _loss_case(case_id: str, n: int, network: str, quick: bool) -> FeatureCase:
    imagenet = network == "imagenet"
    dims = _IMAGENET_BLOCKS if imagenet else _RESNET20_BLOCKS
    blocks = "8 blocks of an ImageNet ResNet-18" if imagenet else "9 blocks of a CIFAR ResNet-20"
    why = "the samples that CKA-SR takes by default" if n == 8 else "a whole batch"
    return FeatureCase(
        id=case_id,
        suite="regularizers",
        title=f"CKA-SR loss, forward and backward, {blocks}, n={n}",
        reason=f"outputs of the residual blocks by stage; n={n} is {why}",
        operation="cka_sum",
        n=n,
        dims=dims,
        groups=(2, 2, 2, 2) if imagenet else (3, 3, 3),
        baselines=LOSS_BASELINES,
        quick=(min(n, 32), _smaller(dims, 4)) if quick else None,
    )


def _scaling_case(n: int, d: int, axis: str, quick: bool) -> FeatureCase:
    return FeatureCase(
        id=f"scale-{axis}-{n if axis == 'n' else d}",
        suite="similarity",
        title=f"unbiased CKA matrix, 8 layers, n={n}, d={d}",
        reason=f"how cost grows with {axis}: the Gram matrices cost n²d, the features n d bytes",
        operation="cka_matrix",
        n=n,
        dims=(d,) * 8,
        baselines=("reference", "eager", "eager_centred"),
        quick=(n, (d,) * 8) if quick else None,
    )


CASES: tuple[Case, ...] = (
    FeatureCase(
        id="S1",
        suite="similarity",
        title="unbiased CKA matrix, 20 layers, n=256, d 8k to 64k",
        reason="the 20 convolutions of a CIFAR ResNet-18, shortcuts included, at batch 256",
        operation="cka_matrix",
        n=256,
        dims=_RESNET18_CONVS,
        baselines=MATRIX_BASELINES,
        quick=(64, _smaller(_RESNET18_CONVS, 16)),
    ),
    FeatureCase(
        id="S4",
        suite="similarity",
        title="unbiased linear CKA of one pair, n=10000, d=512",
        reason="a penultimate layer over a whole test set: d small against n, so d x d products",
        operation="cka",
        n=10_000,
        dims=(512, 512),
        baselines=(
            "reference",
            "eager",
            "pytorch_cka",
            "torch_cka",
            "ckatorch",
        ),
        quick=(1_500, (128, 128)),
    ),
    FeatureCase(
        id="S5",
        suite="similarity",
        title="unbiased RBF CKA of one pair, n=4000, d=512, median bandwidth",
        reason="the largest n at which people still take RBF CKA in one piece; exact median",
        operation="cka",
        n=4_000,
        dims=(512, 512),
        kernel=RBF(0.5),
        baselines=("reference", "eager", "ckatorch"),
        quick=(800, (128, 128)),
    ),
    OverheadCase(
        id="O1",
        suite="similarity",
        title="host cost of one small call: cka of (8, 16), forward",
        reason="small enough that the arithmetic is nothing: what remains is the call itself",
        n=8,
        d=16,
        backward=False,
    ),
    OverheadCase(
        id="O1-grad",
        suite="similarity",
        title="host cost of one small call: cka of (8, 16), forward and backward",
        reason="the same with inputs that require gradients, and torch.autograd.grad after it",
        n=8,
        d=16,
        backward=True,
    ),
    *(_scaling_case(n, 4096, "n", quick=n == 64) for n in (16, 64, 256, 1024)),
    *(_scaling_case(128, d, "d", quick=d == 1024) for d in (64, 1024, 16384, 65536)),
    _loss_case("S2", 128, "cifar", quick=True),
    _loss_case("S2-imagenet", 128, "imagenet", quick=False),
    _loss_case("S3", 8, "cifar", quick=True),
    _loss_case("S3-imagenet", 8, "imagenet", quick=False),
    TrainingCase(
        id="R1",
        suite="regularizers",
        title="CKA-SR at its defaults in a ResNet-20 training step, batch 128",
        reason="the recipe of the CIFAR examples: 32 x 32 images, 8 samples, every 5th step",
        batch=128,
        image=32,
        quick_batch=32,
    ),
)


def select(
    suite: str | None = None, names: Iterable[str] | None = None, quick: bool = False
) -> list[Case]:
    """The cases to run, in registry order.

    Args:
        suite: one of :data:`SUITES`, or None for all.
        names: ids or families of ids, or None for all.
        quick: replaces shapes by their smaller versions and leaves out cases that have none.

    Raises:
        ValueError: for a suite or name that is not registered, or if nothing is left to run.
    """
    if suite is not None and suite not in SUITES:
        raise ValueError(f"--suite must be one of {', '.join(SUITES)}, got {suite!r}")
    wanted = None if names is None else list(names)
    known = {case.id for case in CASES} | {case.id.split("-")[0] for case in CASES}
    for name in wanted or ():
        if name not in known:
            raise ValueError(f"--case must be among {', '.join(sorted(known))}, got {name!r}")
    chosen = [
        case
        for case in CASES
        if (suite is None or case.suite == suite)
        and (wanted is None or case.id in wanted or case.id.split("-")[0] in wanted)
    ]
    resized = [_quick(case) for case in chosen] if quick else list(chosen)
    kept = [case for case in resized if case is not None]
    if not kept:
        hint = " without --quick" if quick and chosen else ""
        raise ValueError(f"no case is left of this --suite and --case; try them{hint}")
    return kept


def find(case_id: str, quick: bool = False) -> Case:
    """The case of exactly this id.

    Raises:
        ValueError: if there is none, or it has no quick version.
    """
    matches = [case for case in CASES if case.id == case_id]
    resized = _quick(matches[0]) if matches and quick else (matches[0] if matches else None)
    if resized is None:
        raise ValueError(f"no case {case_id!r}" + (" with a quick version" if quick else ""))
    return resized


def _quick(case: Case) -> Case | None:
    if isinstance(case, TrainingCase):
        return replace(
            case,
            title=f"CKA-SR at its defaults in a ResNet-20 training step, batch {case.quick_batch}",
            batch=case.quick_batch,
        )
    if isinstance(case, OverheadCase):
        return case
    if case.quick is None:
        return None
    n, dims = case.quick
    if (n, dims) == (case.n, case.dims):
        return case
    return replace(case, n=n, dims=dims, title=f"{case.title} (quick: n={n}, d {_span(dims)})")


def _span(dims: tuple[int, ...]) -> str:
    return str(dims[0]) if min(dims) == max(dims) else f"{min(dims)} to {max(dims)}"
