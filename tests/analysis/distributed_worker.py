"""One rank of the distributed tests: its share of the batches, and the result it sees.

The folder holds ``input.pt``, a list of tasks; see ``rank.py``. A rank whose share of a task is
empty takes part without data.
"""

import torch
from conftest import Given, given_loader
from rank import joined

from sparsekern.analysis import CKA, exact
from sparsekern.analysis.plan import Plan


def _forced(moments):
    def plan(dims, samples, budget, *, element, **rest):
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


with joined() as here:
    outputs = [_run(task, here.number, here.world) for task in torch.load(here.folder / "input.pt")]
    torch.save(outputs, here.folder / f"output{here.number}.pt")
