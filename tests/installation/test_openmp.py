"""The compiled core and torch share one OpenMP runtime, and the thread count passed in is obeyed.

A second runtime would bring its own threads, and the two would fight for the cores.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sparsekern import native

from .expectations import needs_core

_MAPPED = """
import json, re, sys
import torch
from sparsekern import native
core = native.cpu()
ran = [core.parallel_threads(count) for count in (1, 2)]
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps if re.search(r"/lib(g|i)?omp5?[-.\\d]", line)}
print(json.dumps({"files": sorted(files), "ran": ran}))
"""


@needs_core
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_one_openmp_runtime() -> None:
    # A fresh process: this one may have loaded other packages' runtimes (scikit-learn has one).
    command = [sys.executable, "-c", _MAPPED]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert len(found["files"]) == 1, found
    assert found["ran"] == [1, 2]


@needs_core
@pytest.mark.parametrize("threads", [1, 2])
def test_set_num_threads_is_obeyed(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert native.cpu().parallel_threads(torch.get_num_threads()) == threads
    finally:
        torch.set_num_threads(before)
