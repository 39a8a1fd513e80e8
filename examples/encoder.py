"""A transformer encoder with random weights and token data, for `sparsekern compare`.

python examples/encoder.py                                         # writes tokens.npy
sparsekern compare examples.encoder:build --data tokens.npy --tokens mean
"""

import numpy as np
import torch
from torch import Tensor, nn

WORDS, LENGTH, WIDTH, LAYERS = 1000, 24, 64, 12


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:  # (n, length) -> (n, length, width)
        return self.blocks(self.words(tokens) + self.places)


def build() -> Encoder:
    torch.manual_seed(0)
    model = Encoder()
    for block in model.blocks.layers:  # PyTorch makes them copies of one block
        for part in block.modules():
            if part is not block and hasattr(part, "reset_parameters"):
                part.reset_parameters()
    return model


if __name__ == "__main__":
    np.save("tokens.npy", np.random.default_rng(0).integers(0, WORDS, (1024, LENGTH)))
