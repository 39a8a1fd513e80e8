"""Every test of an operator runs once per back end that works here, on poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch

BACKENDS = [name for name in ("reference", "cpu") if dispatch.missing_reason(name) == ""]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with sk.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills fresh tensors with NaN, so that a read of memory nobody wrote shows in the result."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
