"""Peak memory of one contender, in a process of its own.

What counts is the rise of the resident high-water mark during one call, above the inputs, less
the bytes of what the call returns (a gradient is as large as the features, for everyone).

To import torch takes far longer than most calls. So ``python -m sparsekern.bench.memory`` imports
it once, computes nothing, and forks a process for every measurement. Requests and answers are lines
of JSON on standard input and output; what anything else prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from .. import dispatch
from . import cases
from .case import Case
from .inputs import nbytes
from .settings import Settings

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Server:
    """Measures memory in other processes; a context manager. Nothing starts before it is asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def measure(self, case_id: str, name: str, settings: Settings, timeout: float) -> int | None:
        """Extra bytes at the peak of one call, or None where the system does not tell.

        Args:
            case_id: a case of the registry.
            name: the contender.
            settings: those of the run.
            timeout: seconds after which the process is given up.
        """
        if not _CLEAR.exists():
            return None
        request = {"case": case_id, "contender": name, "quick": settings.quick}
        request |= {"backend": settings.backend, "dtype": settings.dtype}
        request |= {"threads": settings.threads}
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], timeout)
            answer = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._end()
            return None
        value = json.loads(answer)
        return None if value is None else int(value)

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the forked one with it
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "sparsekern.bench.memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends this one
    )


def _serve(requests: TextIO, answers: TextIO) -> None:
    warnings.simplefilter("ignore")  # of forking where a library keeps idle threads

    def answer(value: int | None) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    for line in requests:
        request = json.loads(line)
        cases.registry(request["quick"])  # imported once, here
        child = os.fork()
        if child == 0:
            _measure_and_leave(request, answer)
        _, status = os.waitpid(child, 0)
        if status != 0:  # it failed, or was killed for its memory: it has not answered
            answer(None)


def _measure_and_leave(request: dict[str, Any], answer: Callable[[int | None], None]) -> None:
    status = 1
    try:
        answer(_extra_bytes(**request))
        status = 0
    finally:
        os._exit(status)  # whatever was raised: this is a copy of the server


def _high_water() -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def _extra_bytes(
    *, case: str, contender: str, quick: bool, backend: str, dtype: str, threads: int
) -> int | None:
    found = cases.find(case, quick)
    if not isinstance(found, Case):
        return None
    torch.set_num_threads(found.threads or threads)
    chosen = found.contender(contender)
    if chosen.missing_reason():
        return None
    kind = getattr(torch, dtype)
    with dispatch.backend(backend):
        # Libraries and thread stacks are not the contender's memory.
        first = found.inputs(kind, 0) if found.tiny is None else found.tiny(kind)
        chosen.work(chosen.prepared(first))
        del first
        prepared = chosen.prepared(found.inputs(kind, 0))
        try:
            ctypes.CDLL(None).malloc_trim(0)
            _CLEAR.write_text("5", encoding="utf-8")  # resets the high-water mark
        except (OSError, AttributeError):
            return None
        before = _high_water()
        returned = chosen.work(prepared)
        after = _high_water()
    return max(0, after - before - nbytes(chosen.outputs(returned)))


def _main() -> None:
    if sys.argv[1:]:
        raise SystemExit("sparsekern.bench.memory takes no arguments: requests come as JSON lines")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    _main()
