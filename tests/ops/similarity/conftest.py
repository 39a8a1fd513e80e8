"""Triton kernels compiled for GPUs that are not here, while other tests run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import aot


@pytest.fixture(scope="session")
def triton_compilers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aot.Compilers]:
    """The processes that compile the similarity kernels."""
    yield from aot.compilers(Path(__file__).with_name("triton_aot.py"), tmp_path_factory)


@pytest.fixture(scope="session", autouse=True)
def compile_meanwhile(request: pytest.FixtureRequest) -> None:
    """Compiling takes minutes, and the tests before it one core: it begins with the first."""
    own = Path(__file__).with_name("test_triton_compiled.py")
    if any(item.path == own for item in request.session.items):
        request.getfixturevalue("triton_compilers")
