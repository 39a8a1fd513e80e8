"""The networks that ``sparsekern train`` knows, by name, and which of their layers are compared.

Each is written from its paper's description (sources: ``catalogue.MODELS``). Networks made for
images of 224 pixels keep more resolution on small ones, as each file says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..catalogue import MODELS
from . import mlp, mobilenet, resnet, vgg, vit
from .resnet import ResNet

__all__ = ["ARCHITECTURES", "Architecture", "ResNet", "build_model", "similarity_groups"]

Groups = list[list[str]]
LARGE_IMAGE = 128  # from this side on networks take the stem of their paper's ImageNet form


@dataclass(frozen=True)
class Architecture:
    """How a network is made, and what is compared in it.

    Attributes:
        build: ``(width, channels, classes, size)`` to a freshly initialised network.
        groups: names of the modules whose outputs are compared, a list for each stage.
    """

    build: Callable[[int, int, int, int], nn.Module]
    groups: Groups


def _cifar_resnet(blocks: int) -> Architecture:
    stages = [[f"stage{stage}.{block}" for block in range(blocks)] for stage in (1, 2, 3)]
    return Architecture(
        lambda width, channels, classes, size: resnet.ResNet(
            blocks, width=width, channels=channels, classes=classes
        ),
        stages if blocks > 1 else [[name for stage in stages for name in stage]],
    )


def _imagenet_resnet(block: type[resnet.Block], blocks: tuple[int, ...]) -> Architecture:
    return Architecture(
        lambda width, channels, classes, size: resnet.ImageNetResNet(
            block,
            blocks,
            width=width,
            channels=channels,
            classes=classes,
            small_images=size < LARGE_IMAGE,
        ),
        [[f"layer{stage}.{b}" for b in range(count)] for stage, count in enumerate(blocks, 1)],
    )


ARCHITECTURES = {
    "resnet8": _cifar_resnet(1),
    "resnet20": _cifar_resnet(3),
    "resnet32": _cifar_resnet(5),
    "resnet56": _cifar_resnet(9),
    "resnet18": _imagenet_resnet(resnet.ProjectionBlock, (2, 2, 2, 2)),
    "resnet50": _imagenet_resnet(resnet.Bottleneck, (3, 4, 6, 3)),
    "vgg19": Architecture(vgg.VGG19, vgg.GROUPS),
    "mobilenet": Architecture(
        lambda width, channels, classes, size: mobilenet.MobileNet(
            width, channels, classes, small_images=size < LARGE_IMAGE
        ),
        mobilenet.GROUPS,
    ),
    "lenet300": Architecture(
        lambda width, channels, classes, size: mlp.MLP(
            (3 * width, width), channels * size**2, classes
        ),
        mlp.groups(2),
    ),
    "mlp": Architecture(
        lambda width, channels, classes, size: mlp.MLP(
            (width,) * mlp.DEPTH, channels * size**2, classes
        ),
        mlp.groups(mlp.DEPTH),
    ),
    "vit": Architecture(vit.ViT, vit.GROUPS),
}


def build_model(
    name: str,
    *,
    width: int | None = None,
    channels: int,
    classes: int,
    seed: int,
    size: int = 32,
) -> nn.Module:
    """A freshly initialised network; the global random state is left as it was.

    Args:
        name: a key of ``catalogue.MODELS``.
        width: the paper's if None.
        channels: of the images.
        classes: outputs.
        seed: decides the weights.
        size: side of the images, in pixels.

    Raises:
        ValueError: if the network cannot have this width or take images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name].build(width or MODELS[name].width, channels, classes, size)


def similarity_groups(name: str) -> Groups:
    """The modules whose outputs CKA-SR compares, grouped as it compares them.

    One group for each stage, as in the paper. ResNet-8 has one block in a stage, hence no pair in
    it: there the three blocks make one group.
    """
    return ARCHITECTURES[name].groups
