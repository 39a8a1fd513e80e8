"""One rank of the DDP test: trains with a method on its own data, writes weights and masks.

Run as ``python distributed_worker.py RANK WORLD FOLDER METHOD...``.
"""

import os
import sys
from pathlib import Path

import torch
from networks import METHODS, network, train
from torch.nn.parallel import DistributedDataParallel


def main(rank: int, world: int, folder: Path, methods: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world
    )
    for method in methods:
        net = network()
        pruner = METHODS[method](0.8)
        parallel = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
        pruner.attach(parallel, optimizer)
        train(parallel, optimizer, pruner, rank=rank)
        weights = {name: p.detach() for name, p in net.named_parameters()}
        torch.save((weights, pruner.masks), folder / f"{method}{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    # The interpreter's end would meet threads of DDP and gloo that have not ended yet, which now
    # and then aborts a rank that has done all its work.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
