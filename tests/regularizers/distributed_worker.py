"""One rank of the DDP test: three training steps with CKASparsity; writes losses and gradients.

The folder holds ``input.pt``; see ``rank.py``.
"""

import torch
from conftest import SmallNet
from rank import joined
from torch.nn.parallel import DistributedDataParallel

from sparsekern.regularizers import CKASparsity

with joined() as rank:
    state, images = torch.load(rank.folder / "input.pt")
    net = SmallNet()
    net.load_state_dict(state)
    parallel = DistributedDataParallel(net)
    reg = CKASparsity(parallel, every=2, beta=1.0)
    losses = []
    for _ in range(3):
        parallel.zero_grad()
        out = parallel(images + rank.number)
        loss = reg()
        (out.sum() * 0 + loss).backward()
        losses.append(loss.item())
    grads = [p.grad for p in net.parameters()]
    torch.save((losses, grads), rank.folder / f"output{rank.number}.pt")
