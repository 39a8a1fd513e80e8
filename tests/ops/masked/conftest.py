"""The algorithms of the compiled core, each by itself."""

from __future__ import annotations

import pytest

from sparsekern.ops.masked import choice


@pytest.fixture(params=["sparse", "dense"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once per algorithm of the compiled core, whatever would be chosen."""
    for function in ("here", "convolves_sparsely"):
        monkeypatch.setattr(choice, function, lambda *_: request.param == "sparse")
    return str(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops the second algorithm of the reference, which has one."""
    again = [item for item in items if _repeats(item)]
    items[:] = [item for item in items if not _repeats(item)]
    config.hook.pytest_deselected(items=again)


def _repeats(item: pytest.Item) -> bool:
    values = item.callspec.params if hasattr(item, "callspec") else {}
    return (values.get("backend"), values.get("algorithm")) == ("reference", "dense")
