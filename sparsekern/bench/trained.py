"""Networks whose training steps are measured: MLP, ResNet-20, small vision transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training.models import ResNet


class MLP(nn.Sequential):
    """Two hidden layers with ReLU on flattened images."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )


class _Block(nn.Module):
    """Attention and an MLP four times as wide, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, width)`` to the same."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, d)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(mixed)
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) that averages its tokens.

    Args:
        image: side of the images.
        patch: side of the patches that become tokens.
        width: features of a token.
        depth: blocks.
        heads: of the attention.
        channels: of the images.
        classes: outputs.
    """

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn((image // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, image, image)`` to ``(n, classes)``."""
        tokens = self.embed(x).flatten(2).mT + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A freshly initialised network; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def resnet20(width: int, channels: int, classes: int = 10) -> ResNet:
    """The CIFAR ResNet-20 with ``width`` channels in its first stage."""
    return ResNet(3, width=width, channels=channels, classes=classes)
