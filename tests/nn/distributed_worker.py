"""One rank of the DDP test: the gradients of a masked layer for its part of the batch, twice.

The folder holds ``input.pt``; see ``rank.py``.
"""

import torch
from rank import joined
from torch.nn.parallel import DistributedDataParallel

with joined() as rank:
    layer, x = torch.load(rank.folder / "input.pt", weights_only=False)
    parallel = DistributedDataParallel(layer)
    grads = []
    for _ in range(2):
        parallel.zero_grad()
        parallel(x[rank.number]).square().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    torch.save(grads, rank.folder / f"output{rank.number}.pt")
