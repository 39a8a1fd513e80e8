"""The algorithms of the compiled core, each by itself."""

from __future__ import annotations

import pytest

from sparsekern.ops.masked import choice


@pytest.fixture(params=["sparse", "dense"])
def algorithm(request: pytest.FixtureRequest, backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once per algorithm of the compiled core, whatever would be chosen."""
    if backend == "reference" and request.param == "dense":
        pytest.skip("the reference has one algorithm")
    for function in ("here", "convolves_sparsely"):
        monkeypatch.setattr(choice, function, lambda *_: request.param == "sparse")
    return str(request.param)
