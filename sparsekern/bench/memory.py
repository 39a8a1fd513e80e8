"""Peak memory of one contender, in a process of its own: ``python -m sparsekern.bench.memory``.

What counts is the rise of the resident high-water mark during one call, above the inputs, less
the bytes of what the call returns (a gradient is as large as the features, for everyone).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from .. import dispatch
from . import cases
from .case import Case
from .inputs import nbytes
from .settings import Settings

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def measure(case_id: str, name: str, settings: Settings, timeout: float) -> int | None:
    """Extra bytes at the peak of one call, or None where the system does not tell.

    Args:
        case_id: a case of the registry.
        name: the contender.
        settings: those of the run.
        timeout: seconds after which the process is given up.
    """
    if not _CLEAR.exists():
        return None
    command = [sys.executable, "-m", "sparsekern.bench.memory", case_id, name]
    command += ["--backend", settings.backend, "--dtype", settings.dtype]
    command += ["--threads", str(settings.threads)]
    command += ["--quick"] if settings.quick else []
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    value = json.loads(done.stdout.strip().splitlines()[-1])
    return None if value is None else int(value)


def _high_water() -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def _extra_bytes(arguments: argparse.Namespace) -> int | None:
    case = cases.find(arguments.case, arguments.quick)
    if not isinstance(case, Case):
        return None
    torch.set_num_threads(case.threads or arguments.threads)
    contender = case.contender(arguments.contender)
    if contender.missing_reason():
        return None
    dtype = getattr(torch, arguments.dtype)
    with dispatch.backend(arguments.backend):
        if case.tiny is not None:
            # Libraries and thread stacks are not the contender's memory.
            contender.work(contender.prepared(case.tiny(dtype)))
        prepared = contender.prepared(case.inputs(dtype, 0))
        try:
            ctypes.CDLL(None).malloc_trim(0)
            _CLEAR.write_text("5", encoding="utf-8")  # resets the high-water mark
        except (OSError, AttributeError):
            return None
        before = _high_water()
        returned = contender.work(prepared)
        after = _high_water()
    return max(0, after - before - nbytes(contender.outputs(returned)))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("contender")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    print(json.dumps(_extra_bytes(parser.parse_args())))


if __name__ == "__main__":
    _main()
