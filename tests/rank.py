"""What the script of a distributed test shares: its place among the ranks, and a clean end.

Such a script is run as ``python SCRIPT RANK WORLD FOLDER ARGUMENTS...`` by the fixture
``run_ranks``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch


class Rank(NamedTuple):
    """What a rank was told: its number, how many there are, the test's folder, and the rest."""

    number: int
    world: int
    folder: Path
    arguments: list[str]


@contextmanager
def joined() -> Iterator[Rank]:
    """This process as a rank of a gloo group, for the length of a script.

    It ends the process when the body is done. A gloo group that is destroyed waits for its threads
    with the interpreter's lock held, and they wait for that lock to let go of tensors that Python
    has seen; the interpreter's own end meets the same threads.
    """
    rank = Rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{rank.folder / 'store'}",
        rank=rank.number,
        world_size=rank.world,
    )
    yield rank
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)
