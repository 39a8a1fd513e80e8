"""Importing sparsekern is quick and touches neither Triton, CUDA, nor the command's own parts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_LIMIT_SECONDS = 0.050
_ATTEMPTS = 20

# The processor's time, which other work on the machine adds little to.
_TIMED = """
import time
import torch
start = time.thread_time()
import sparsekern
print(time.thread_time() - start)
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


def _run(code: str, environment: dict[str, str] | None = None) -> list[str]:
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    return result.stdout.splitlines()


def test_import_costs_little_beyond_torch(tmp_path: Path) -> None:
    # With bytecode, as pip leaves it; an editable install under PYTHONDONTWRITEBYTECODE has none.
    # The least of as many as it takes: the first compiles, and what else the machine does only
    # ever adds to the time.
    bytecode = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    times: list[float] = []
    while len(times) < _ATTEMPTS and min(times, default=1.0) >= _LIMIT_SECONDS:
        times.append(float(_run(_TIMED, bytecode)[0]))
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
