"""MobileNetV1 (Howard et al. 2017, table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from .resnet import initialise

# Output channels in widths of the first convolution, and stride, of each of the 13 blocks.
_BLOCKS = (
    (2, 1),
    (4, 2),
    (4, 1),
    (8, 2),
    (8, 1),
    (16, 2),
    *((16, 1),) * 5,
    (32, 2),
    (32, 1),
)
# By resolution; the only block at the highest one goes with the next two.
GROUPS = [
    [f"blocks.{block}" for block in range(first, last)]
    for first, last in ((0, 3), (3, 5), (5, 11), (11, 13))
]


class SeparableConvolution(nn.Module):
    """A 3x3 convolution of each channel, then a 1x1 one over channels, each with norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, c', h / stride, w / stride)``."""
        x = self.relu1(self.bn1(self.depthwise(x)))
        x = self.relu2(self.bn2(self.pointwise(x)))
        return x


class MobileNet(nn.Module):
    """A convolution, 13 separable ones, average pooling and a linear layer.

    Args:
        width: channels of the first convolution, 32 in the paper.
        channels: channels of the images.
        classes: outputs.
        small_images: the first convolution has stride 1 in place of 2.
    """

    def __init__(self, width: int, channels: int, classes: int, *, small_images: bool) -> None:
        super().__init__()
        stride = 1 if small_images else 2
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        blocks = []
        channels = width
        for factor, stride in _BLOCKS:
            blocks.append(SeparableConvolution(channels, factor * width, stride))
            channels = factor * width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w) -> (n, classes)``."""
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
