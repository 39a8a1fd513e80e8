"""A small vision transformer (Dosovitskiy et al. 2021), in DeiT-Ti's size (Touvron et al. 2021).

Twelve blocks of pre-norm attention and a hidden layer, three heads, a class token, learned
positions. Patches have 16 pixels a side on images of 128 pixels or more; smaller images are cut
into 8x8 patches, those of the digits into 4x4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTH, HEADS = 12, 3
_HIDDEN = 4  # neurons of a block's hidden layer, in widths
GROUPS = [[f"blocks.{b}" for b in range(first, first + 4)] for first in (0, 4, 8)]


def patch_size(size: int) -> int:
    """The side of a patch on images of this side."""
    return 16 if size >= 128 else max(2, size // 8)


class Attention(nn.Module):
    """Self-attention with plain linear layers, so that their weights can be masked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, t, width)`` to the same."""
        n, t, width = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, HEADS, width // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, t, width / heads)
        y = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.projection(y.transpose(1, 2).reshape(n, t, width))
        return out


class Block(nn.Module):
    """Attention and a hidden layer, each normalised before and added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, _HIDDEN * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(_HIDDEN * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, t, width)`` to the same."""
        x = x + self.attention(self.norm1(x))
        x = x + self.fc2(self.gelu(self.fc1(self.norm2(x))))
        return x


class ViT(nn.Module):
    """The transformer over patches.

    Args:
        width: features of a token, 192 in DeiT-Ti.
        channels: channels of the images.
        classes: outputs.
        size: side of the images.

    Raises:
        ValueError: if the heads cannot share the width, or the patches not cover the image.
    """

    def __init__(self, width: int, channels: int, classes: int, size: int) -> None:
        super().__init__()
        patch = patch_size(size)
        if width % HEADS:
            raise ValueError(f"the vit's width must be a multiple of {HEADS}, got {width}")
        if size % patch:
            raise ValueError(
                f"the vit cuts images into patches of {patch} pixels: the image size must be a "
                f"multiple of it, got {size}"
            )
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = nn.Linear(width, classes)
        for parameter in (self.token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, size, size) -> (n, classes)``."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        logits: Tensor = self.fc(x[:, 0])
        return logits
