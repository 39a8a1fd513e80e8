"""The algorithms of the compiled core, each by itself; kernels that are compiled meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsekern.ops.masked import choice

from .. import aot


@pytest.fixture(scope="session")
def masked_compilers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aot.Compilers]:
    """The processes that compile the dense products' kernels for GPUs that are not here."""
    yield from aot.compilers(Path(__file__).with_name("triton_aot.py"), tmp_path_factory)


@pytest.fixture(scope="session", autouse=True)
def compile_masked_meanwhile(request: pytest.FixtureRequest) -> None:
    """Compiling takes a while, and the tests before it one core: it begins with the first."""
    own = Path(__file__).with_name("test_triton_compiled.py")
    if any(item.path == own for item in request.session.items):
        request.getfixturevalue("masked_compilers")


@pytest.fixture(params=["sparse", "dense"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once per algorithm of the compiled core, whatever would be chosen."""
    sparse = request.param == "sparse"
    for function in ("here", "convolves_sparsely"):
        monkeypatch.setattr(choice, function, lambda *_: sparse)
    monkeypatch.setattr(choice, "all_here", lambda *_: (sparse,) * 3)
    return str(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops the second algorithm of the reference, which has one."""
    again = [item for item in items if _repeats(item)]
    items[:] = [item for item in items if not _repeats(item)]
    config.hook.pytest_deselected(items=again)


def _repeats(item: pytest.Item) -> bool:
    values = item.callspec.params if hasattr(item, "callspec") else {}
    return (values.get("backend"), values.get("algorithm")) == ("reference", "dense")
