"""One rank of the DDP test: trains with methods on its own data, writes weights and masks.

Its arguments are the methods' names; see ``rank.py``.
"""

import torch
from networks import METHODS, network, train
from rank import joined
from torch.nn.parallel import DistributedDataParallel

with joined() as rank:
    for method in rank.arguments:
        net = network()
        pruner = METHODS[method](0.8)
        parallel = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
        pruner.attach(parallel, optimizer)
        train(parallel, optimizer, pruner, rank=rank.number)
        weights = {name: p.detach() for name, p in net.named_parameters()}
        torch.save((weights, pruner.masks), rank.folder / f"{method}{rank.number}.pt")
