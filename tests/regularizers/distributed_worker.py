"""One rank of the DDP test: three training steps with CKASparsity; writes losses and gradients.

Run as ``python distributed_worker.py RANK WORLD FOLDER``; FOLDER holds ``input.pt``.
"""

import sys
from pathlib import Path

import torch
from conftest import SmallNet
from torch.nn.parallel import DistributedDataParallel

from sparsekern.regularizers import CKASparsity


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    state, images = torch.load(folder / "input.pt")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world
    )
    net = SmallNet()
    net.load_state_dict(state)
    parallel = DistributedDataParallel(net)
    reg = CKASparsity(parallel, every=2, beta=1.0)
    losses = []
    for _ in range(3):
        parallel.zero_grad()
        out = parallel(images + rank)
        loss = reg()
        (out.sum() * 0 + loss).backward()
        losses.append(loss.item())
    torch.save((losses, [p.grad for p in net.parameters()]), folder / f"output{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
