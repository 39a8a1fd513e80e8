"""The CKA-SR loss with its gradient, and the regulariser inside a training step."""

from __future__ import annotations

from .. import training_step
from ..case import AnyCase
from ..features import FeatureWork, span

SUITE = "regularizers"
LOSS_BASELINES = (
    "reference",
    "eager",
    "eager_centred",
    "eager_backward",
    "pytorch_cka",
    "ckatorch",
    "authors",
)
# Outputs of the residual blocks of a CIFAR ResNet-20 and of an ImageNet ResNet-18.
_RESNET20_BLOCKS = (16 * 32 * 32,) * 3 + (32 * 16 * 16,) * 3 + (64 * 8 * 8,) * 3
_IMAGENET_BLOCKS = (
    (64 * 56 * 56,) * 2 + (128 * 28 * 28,) * 2 + (256 * 14 * 14,) * 2 + (512 * 7 * 7,) * 2
)


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    cifar = [_loss("S2", 128, _RESNET20_BLOCKS, quick), _loss("S3", 8, _RESNET20_BLOCKS, quick)]
    step = training_step.case(batch=32 if quick else 128)
    if quick:
        return [*cifar, step]
    imagenet = [
        _loss("S2-imagenet", 128, _IMAGENET_BLOCKS, quick),
        _loss("S3-imagenet", 8, _IMAGENET_BLOCKS, quick),
    ]
    return [cifar[0], imagenet[0], cifar[1], imagenet[1], step]


def _loss(case_id: str, n: int, dims: tuple[int, ...], quick: bool) -> AnyCase:
    groups: tuple[int, ...] = (3,) * 3
    blocks = "9 blocks of a CIFAR ResNet-20"
    if dims is _IMAGENET_BLOCKS:
        blocks, groups = "8 blocks of an ImageNet ResNet-18", (2,) * 4
    why = "the samples that CKA-SR takes by default" if n == 8 else "a whole batch"
    title = f"CKA-SR loss, forward and backward, {blocks}, n={n}"
    work = FeatureWork("cka_sum", n, dims, groups)
    if quick:
        work = FeatureWork("cka_sum", min(n, 32), tuple(d // 4 for d in dims), groups)
        title += f" (quick: n={work.n}, d {span(work.dims)})"
    return work.case(
        LOSS_BASELINES,
        id=case_id,
        suite=SUITE,
        title=title,
        reason=f"outputs of the residual blocks by stage; n={n} is {why}",
        summary=True,
    )
