"""Importing sparsekern is quick and touches neither Triton, CUDA, nor the command's own parts."""

from __future__ import annotations

import subprocess
import sys

_LIMIT_SECONDS = 0.050
_REPEATS = 5

_TIMED = """
import time
import torch
start = time.perf_counter()
import sparsekern
print(time.perf_counter() - start)
"""

_TOUCHED = """
import sys
import torch
before = set(sys.modules)
import sparsekern
loaded = set(sys.modules) - before
unwanted = ("triton", "matplotlib", "sklearn", "rich", "sparsekern.training", "sparsekern.bench")
print(*(name for name in loaded if name.startswith(unwanted)))
print(torch.cuda.is_initialized())
"""


def _run(code: str) -> list[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_import_costs_little_beyond_torch() -> None:
    # The least: whatever else the machine does only ever adds to the time.
    times = [float(_run(_TIMED)[0]) for _ in range(_REPEATS)]
    assert min(times) < _LIMIT_SECONDS, times


def test_import_touches_neither_triton_nor_cuda_nor_commands() -> None:
    unwanted, cuda_initialised = _run(_TOUCHED)
    assert unwanted == ""
    assert cuda_initialised == "False"


def test_works_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, sparsekern as sk\n"
        "x = torch.eye(8)[:, :5] + torch.arange(8.0)[:, None] ** 2\n"
        "print(float(sk.cka(x, x)))"
    )
    assert abs(float(_run(code)[0]) - 1) < 1e-5
