"""What every test shares: seeds, and the back ends to run on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import sparsekern as sk

# Without a GPU, Triton's interpreter stands in for one: to be said before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# What has been tuned on this machine is not what is tested.
os.environ.setdefault("SPARSEKERN_TRITON_CONFIGURATIONS", "shipped")

# An install without the compiled core is tested on the reference alone, by saying so; a core that
# is missing for any other reason is a failure and not a skip.
BACKENDS = ["reference"] if os.environ.get("SPARSEKERN_CPU") == "0" else ["reference", "cpu"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per back end, inside ``sk.backend(name)``."""
    with sk.backend(request.param):
        yield request.param


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., None]:
    """Runs a script once per rank, each in a process of its own; see ``rank.py``."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])

    def run(script: Path, world: int, *arguments: str) -> None:
        workers = [
            subprocess.Popen(
                [sys.executable, script, str(rank), str(world), tmp_path, *arguments],
                env={**os.environ, "PYTHONPATH": path},
            )
            for rank in range(world)
        ]
        try:
            assert [worker.wait(timeout=120) for worker in workers] == [0] * world
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()

    return run
