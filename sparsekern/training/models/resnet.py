"""Residual networks (He et al. 2016): those for CIFAR (section 4.2) and for ImageNet (table 1).

Every activation is a module of its own, so that hooks can count dead neurons. The output of a block
is that of its last ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


def initialise(model: nn.Module) -> None:
    """He et al. 2015 for convolutions, over what a unit passes on."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A: strided, padded with zeros)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, c', h / stride, w / stride)``."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(y)) + shortcut)
        return out


class ResNet(nn.Module):
    """For CIFAR: a stem, three stages with 1, 2 and 4 times ``width`` channels, a classifier.

    Args:
        blocks: residual blocks in each stage: 1 for ResNet-8, 3, 5 and 9 for 20, 32 and 56.
        width: channels of the first stage.
        channels: channels of the images, of any size from 4x4.
        classes: outputs.
    """

    def __init__(
        self, blocks: int, *, width: int = 16, channels: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stage1 = self._stage(blocks, width, width, stride=1)
        self.stage2 = self._stage(blocks, width, 2 * width, stride=2)
        self.stage3 = self._stage(blocks, 2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, classes)
        initialise(self)

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, stride)
        rest = [BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w) -> (n, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Option B: the identity, or a projection where the shape changes."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
    )


class Block(nn.Module):
    """What the blocks of ImageNet networks share: their arguments.

    Attributes:
        expansion: output channels, in widths.
    """

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()


class ProjectionBlock(Block):
    """Two 3x3 convolutions, and a projection where the shape changes."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__(channels_in, width, stride)
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels_in, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, width, h / stride, w / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions; the stride stands in the 3x3 one, as is usual today."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__(channels_in, width, stride)
        channels_out = self.expansion * width
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.shortcut = _shortcut(channels_in, channels_out, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, 4 width, h / stride, w / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        out: Tensor = self.relu3(self.bn3(self.conv3(y)) + self.shortcut(x))
        return out


class ImageNetResNet(nn.Module):
    """For ImageNet: four stages with 1, 2, 4 and 8 times ``width`` channels.

    Args:
        block: ``ProjectionBlock`` or ``Bottleneck``.
        blocks: how many in each stage: (2, 2, 2, 2) for ResNet-18, (3, 4, 6, 3) for ResNet-50.
        width: channels of the first stage, before a bottleneck's expansion.
        channels: channels of the images.
        classes: outputs.
        small_images: a 3x3 stem of stride 1 in place of the 7x7 one of stride 2 and the pooling.
    """

    def __init__(
        self,
        block: type[Block],
        blocks: Sequence[int],
        *,
        width: int,
        channels: int,
        classes: int,
        small_images: bool,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        channels_in = width
        for stage, count in enumerate(blocks):
            stage_width = width * 2**stage
            layers = []
            for index in range(count):
                first_stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels_in, stage_width, first_stride))
                channels_in = block.expansion * stage_width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self._stages = [f"layer{stage + 1}" for stage in range(len(blocks))]
        self.fc = nn.Linear(channels_in, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w) -> (n, classes)``."""
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
