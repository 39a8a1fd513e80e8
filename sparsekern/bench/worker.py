"""One side of ``--base``: ``python -m sparsekern.bench.worker`` runs sparsekern on request.

Requests and answers are lines of JSON on standard input and output. What anything else prints goes
to standard error, so that it cannot come between.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

import torch

from .. import dispatch
from . import cases, inputs, machine, runner
from .case import Case
from .results import Row
from .settings import Settings
from .timing import mean_seconds


def _serve(settings: Settings, requests: TextIO, answers: TextIO) -> None:
    call: Callable[[], Any] | None = None

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    torch.set_num_threads(settings.threads)
    runner.settle_allocator()
    with dispatch.backend(settings.backend):
        answer(backend=settings.resolved_backend, isa=machine.describe()["isa"])
        for line in requests:
            request = json.loads(line)
            if request["do"] == "open":
                call = None
                gc.collect()  # the last case's copies before the next one's
                call, content = _open(request["case"], settings)
                answer(**content)
            elif request["do"] == "sample" and call is not None:
                answer(seconds=mean_seconds(call, request["repeats"]))


def _open(case_id: str, settings: Settings) -> tuple[Callable[[], Any] | None, dict[str, Any]]:
    """Sparsekern's call of a case, and the time of one; or why it cannot be run."""
    try:
        case = cases.find(case_id, settings.quick)
    except ValueError as error:
        return None, {"problem": str(error)}
    assert isinstance(case, Case)
    torch.set_num_threads(case.threads or settings.threads)
    copies = inputs.copies(case, settings.torch_dtype)
    ours = case.contenders[0]
    row = Row(ours.name, ours.label)
    try:
        expected = case.oracle(copies[0])
    except Exception as error:  # an older version may lack what the oracle calls
        return None, {"problem": f"{type(error).__name__}: {error}"}
    entry = runner.gate_one(row, ours, case, settings, copies, expected)
    if entry is None or row.status != "ok":
        return None, {"problem": f"{row.status}: {row.note}"}
    return runner.rotated(entry.calls), {"seconds": entry.estimate, "error": row.error}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(Settings(**vars(arguments)), sys.stdin, answers)


if __name__ == "__main__":
    _main()
