"""CKA-SR in a training loop of your own: three lines, marked below.

A residual network with 90 % of its weights masked at random learns handwritten digits.
Needs scikit-learn for the digits: pip install 'sparsekern[data]'
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import sparsekern as sk


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(self.norm(x))))


torch.manual_seed(0)
digits, labels = map(torch.tensor, load_digits(return_X_y=True))
digits = digits.float() / 16
order = torch.randperm(len(digits))
train, test = order[:1437], order[1437:]

model = nn.Sequential(nn.Linear(64, 128), nn.Sequential(*map(Block, [128] * 6)), nn.Linear(128, 10))
for module in model.modules():
    if isinstance(module, nn.Linear):
        prune.random_unstructured(module, "weight", amount=0.9)

regularizer = sk.regularizers.CKASparsity(model, beta=3e-3)  # 1: finds the blocks by itself
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
for _ in range(20):
    for batch in train[torch.randperm(len(train))].split(64):
        loss = F.cross_entropy(model(digits[batch]), labels[batch])
        loss = loss + regularizer()  # 2: after the forward, added to the loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
regularizer.remove()  # 3: leaves no trace in the model

with torch.no_grad():
    accuracy = (model(digits[test]).argmax(dim=1) == labels[test]).float().mean()
blocks = len(model[1])
similarity = (regularizer.last - blocks) / (blocks * (blocks - 1))  # without the pairs i = j
print(f"test accuracy {accuracy:.1%}, mean CKA between blocks {similarity:.3f}")
