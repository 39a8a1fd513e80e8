"""A small network, its data, and every method with its arguments; the DDP worker reads it too."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import sparsekern as sk

STEPS_PER_EPOCH = 4
EPOCHS = 6


class SmallNet(nn.Module):
    """Convolutions, batch norm, linear layers with biases; images are ``(n, 3, 6, 6)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.relu2 = nn.ReLU()
        self.hidden = nn.Linear(8, 16)
        self.relu3 = nn.ReLU()
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.relu1(self.bn(self.conv1(x)))
        x = self.relu2(self.conv2(x)).mean(dim=(2, 3))
        return self.fc(self.relu3(self.hidden(x)))


WEIGHTS = ["conv1.weight", "conv2.weight", "hidden.weight", "fc.weight"]


def network(seed=0):
    torch.manual_seed(seed)
    return SmallNet()


def batch(number, rank=0):
    """The batch of a step: images and labels that its number determines."""
    generator = torch.Generator().manual_seed(1000 * rank + number)
    images = torch.randn(16, 3, 6, 6, generator=generator)
    return images, torch.randint(0, 5, (16,), generator=generator)


def loss_of(model, data):
    images, labels = data
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(images.to(dtype)), labels)


def train(model, optimizer, pruner, epochs=EPOCHS, first=0, rank=0, after_step=None):
    """Plain training, as the protocol has it; ``after_step`` looks at every step."""
    for epoch in range(first, epochs):
        for step in range(STEPS_PER_EPOCH):
            optimizer.zero_grad()
            loss = loss_of(model, batch(epoch * STEPS_PER_EPOCH + step, rank))
            method = getattr(pruner, "base", pruner)
            (loss + method.penalty() if hasattr(method, "penalty") else loss).backward()
            optimizer.step()
            pruner.step()
            if after_step is not None:
                after_step()
        pruner.epoch()


def accuracy(model):
    """On fixed data, in evaluation mode."""
    images, labels = batch(77)
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(images.to(next(model.parameters()).dtype))
    model.train(training)
    return (logits.argmax(dim=1) == labels).float().mean().item()


# Name -> a function of the sparsity that makes the pruner, at its end after EPOCHS epochs.
METHODS = {
    "rst": lambda sparsity: sk.pruning.RST(sparsity),
    "rst-uniform": lambda sparsity: sk.pruning.RST(sparsity, distribution="uniform"),
    "gmp": lambda sparsity: sk.pruning.GMP(sparsity, begin=2, end=20, every=3),
    "gmp-erk": lambda sparsity: sk.pruning.GMP(
        sparsity, end=20, every=1, initial=0.2, distribution="erk"
    ),
    "lth": lambda sparsity: sk.pruning.LTH(sparsity, epochs=2, rounds=2, rewind=1),
    "lth-kept": lambda sparsity: sk.pruning.LTH(
        sparsity, epochs=1, rate=0.4, rewind=None, distribution="uniform"
    ),
    "set": lambda sparsity: sk.pruning.SET(sparsity, epochs=EPOCHS),
    "snip": lambda sparsity: sk.pruning.SNIP(sparsity, loss=loss_of, batches=[batch(99)]),
    "grasp": lambda sparsity: sk.pruning.GraSP(
        sparsity, loss=loss_of, batches=[batch(98), batch(99)]
    ),
    "art": lambda sparsity: sk.pruning.ART(
        sparsity, accuracy=accuracy, warmup=1, strength=1e-4, max_epochs=4
    ),
    "optg": lambda sparsity: sk.pruning.OptG(sparsity, epochs=EPOCHS),
    "rigl": lambda sparsity: sk.pruning.RigL(sparsity, end=20, every=3),
    # AP in tandem, with bases that have cycles and bases that have none.
    "ap-lth": lambda sparsity: sk.pruning.AP(METHODS["lth"](sparsity)),
    "ap-gmp": lambda sparsity: sk.pruning.AP(METHODS["gmp"](sparsity), share=0.3),
    "ap-rst": lambda sparsity: sk.pruning.AP(METHODS["rst"](sparsity), cycles=2, epochs=2),
    "ap-set": lambda sparsity: sk.pruning.AP(METHODS["set"](sparsity), cycles=3),
    "ap-rigl": lambda sparsity: sk.pruning.AP(METHODS["rigl"](sparsity), rewind=1),
    "ap-snip": lambda sparsity: sk.pruning.AP(METHODS["snip"](sparsity)),
    "ap-optg": lambda sparsity: sk.pruning.AP(METHODS["optg"](sparsity)),
    "ap-art": lambda sparsity: sk.pruning.AP(METHODS["art"](sparsity)),
}
# Those that have the final sparsity at once.
STATIC = ["rst", "rst-uniform", "set", "rigl", "snip", "grasp"]
