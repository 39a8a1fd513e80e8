"""CIFAR-style residual networks (He et al. 2016, section 4.2), for 8x8 as for 32x32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCKS_PER_STAGE = {"resnet8": 1, "resnet20": 3}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut; the output is that of the last ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, c', h / stride, w / stride)``."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    """A stem, three stages of blocks with 1, 2 and 4 times ``width`` channels, a classifier.

    Args:
        blocks: residual blocks in each stage: 1 for ResNet-8, 3 for ResNet-20.
        width: channels of the first stage.
        channels: channels of the images.
        classes: outputs.
    """

    def __init__(
        self, blocks: int, *, width: int = 16, channels: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = self._stage(blocks, width, width, stride=1)
        self.stage2 = self._stage(blocks, width, 2 * width, stride=2)
        self.stage3 = self._stage(blocks, 2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, stride)
        rest = [BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w) -> (n, classes)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def build_model(name: str, *, width: int, channels: int, classes: int, seed: int) -> ResNet:
    """A freshly initialised network; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(BLOCKS_PER_STAGE[name], width=width, channels=channels, classes=classes)


def similarity_groups(name: str) -> list[list[str]]:
    """The modules whose outputs CKA-SR compares, grouped as it compares them.

    One group for each stage, as in the paper. ResNet-8 has one block in a stage, hence no pair in
    it: there the three blocks make one group.
    """
    blocks = BLOCKS_PER_STAGE[name]
    stages = [[f"stage{stage}.{block}" for block in range(blocks)] for stage in (1, 2, 3)]
    return stages if blocks > 1 else [[name for stage in stages for name in stage]]
