"""When the compiled core must be there: always, unless the install left it out by request."""

from __future__ import annotations

import os

import pytest

needs_core = pytest.mark.skipif(
    os.environ.get("SPARSEKERN_CPU") == "0",
    reason="SPARSEKERN_CPU=0: the install under test has no compiled core",
)
