"""VGG-19 (Simonyan & Zisserman 2015, configuration E), with batch norm after each convolution.

Images of 224 pixels get the paper's three-layer classifier; smaller ones a single linear layer, as
is usual for CIFAR.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .resnet import initialise

_CONVOLUTIONS = (2, 2, 4, 4, 4)  # in each stage
_FACTORS = (1, 2, 4, 8, 8)  # channels of each stage, in widths
_HIDDEN = 64  # neurons of the large classifier's hidden layers, in widths
GROUPS = [[f"stage{s}.{c}" for c in range(n)] for s, n in enumerate(_CONVOLUTIONS, start=1)]


class Convolution(nn.Module):
    """A 3x3 convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, c', h, w)``."""
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


class VGG19(nn.Module):
    """Sixteen convolutions in five stages, each followed by pooling, and a classifier.

    Args:
        width: channels of the first stage, 64 in the paper.
        channels: channels of the images.
        classes: outputs.
        size: side of the images; below 32 the last poolings, with nothing left to pool, are left
            out.
    """

    def __init__(self, width: int, channels: int, classes: int, size: int) -> None:
        super().__init__()
        for stage, (count, factor) in enumerate(zip(_CONVOLUTIONS, _FACTORS, strict=True), start=1):
            layers = []
            for _ in range(count):
                layers.append(Convolution(channels, factor * width))
                channels = factor * width
            self.add_module(f"stage{stage}", nn.Sequential(*layers))
        large = size >= 224
        self._grid = 7 if large else 1
        if large:
            hidden = _HIDDEN * width
            self.classifier: nn.Module = nn.Sequential(
                nn.Linear(channels * self._grid**2, hidden),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(hidden, classes),
            )
        else:
            self.classifier = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w) -> (n, classes)``."""
        for stage in range(1, 1 + len(_CONVOLUTIONS)):
            x = self.get_submodule(f"stage{stage}")(x)
            if min(x.shape[2:]) > 1:
                x = functional.max_pool2d(x, 2)
        x = functional.adaptive_avg_pool2d(x, self._grid).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits
