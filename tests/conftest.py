"""What every test shares: seeds, and the back ends to run on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import sparsekern as sk

# Without a GPU, Triton's interpreter stands in for one: to be said before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
