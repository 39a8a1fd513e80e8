"""One rank of the distributed tests: its share of the batches, and the result it sees.

Run as ``python distributed_worker.py RANK WORLD FOLDER``; FOLDER holds ``input.pt``, a list of
tasks. A rank whose share of a task is empty takes part without data.
"""

import sys
from pathlib import Path

import torch
from conftest import Given, given_loader

from sparsekern.analysis import CKA, exact
from sparsekern.analysis.plan import Plan


def _forced(moments):
    def plan(dims, samples, budget, *, element, ranks):
        return Plan(tuple(moments), 0, 0, False, 8, 1.0)

    return plan


def _run(task, rank, world):
    options = dict(task["options"])
    if task["moments"] is not None:
        exact.make_plan = _forced(task["moments"])
    batches = task["batches"][rank::world]
    if task.get("spoil") == rank:
        batches[0][1][0] = torch.nan
    model = Given(len(task["batches"][0])).eval()
    comparison = CKA(model, inputs=lambda b: tuple(b["features"]), **options)
    try:
        result = comparison.compare(given_loader(batches), progress=False)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return vars(result)


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    tasks = torch.load(folder / "input.pt")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world
    )
    torch.save([_run(task, rank, world) for task in tasks], folder / f"output{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
