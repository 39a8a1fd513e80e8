"""``make gpu``: what it starts, and what it says of what fails, with a stand-in for Python."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsekern.bench import command
from sparsekern.bench.cases import gpu, gpu_dense, gpu_masked, gpu_sparse

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(
    MAKE is None or not all(map(shutil.which, ("bash", "timeout", "tee"))),
    reason="needs make, bash and coreutils",
)
# Notes each call, fails or takes long where it is told to, and has no module but what is asked for.
STAND_IN = """#!/usr/bin/env bash
printf '%s %s\\n' "${SPARSEKERN_CUDA:-}" "$*" | tr '\\n' ' ' >>"$CALLS"; echo >>"$CALLS"
case "$*" in
    *get_device_capability\\(\\)\\)\\)) echo 90 ;;
    *xdist*) exit 1 ;;
    $FAILING) echo "broken: $SECONDS"; exit 3 ;;
    $SLOW) sleep 60 ;;
esac
"""


def run(
    folder: Path, *, failing: str = "-", slow: str = "-", seconds: int = 585, **settings: str
) -> tuple[int, str, list[str]]:
    """Exit status, what is in the log, and the calls of Python."""
    python, calls, out = folder / "python", folder / "calls", folder / "out"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    kept = ("PATH", "HOME", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"OUT": str(out), "CALLS": str(calls), "TOTAL": str(seconds), **settings}
    done = subprocess.run(
        [str(MAKE), "gpu", f"PYTHON={python}"],
        cwd=ROOT,
        env={**environment, "FAILING": failing, "SLOW": slow},
        capture_output=True,
        text=True,
        timeout=60,
    )
    log = (out / "gpu.log").read_text(encoding="utf-8")
    assert log in done.stdout
    return done.returncode, log, calls.read_text(encoding="utf-8").splitlines()


def summary(log: str) -> dict[str, str]:
    """What became of each part."""
    lines = log.rpartition("] done\n")[2].splitlines()
    found = [re.fullmatch(r"(\S.*?) +\d+ s  (.+)", line) for line in lines]
    assert all(found)
    return {match.group(1): match.group(2) for match in found if match}


def test_all_parts_run_and_the_kernels_are_built(tmp_path: Path) -> None:
    status, log, calls = run(tmp_path)
    assert status == 0
    parts = summary(log)
    assert set(parts.values()) == {"ok"}
    assert {"build", "CUDA kernels", "tests", "compressed weights", "tables"} <= set(parts)
    (build,) = (call for call in calls if "setup.py" in call)
    assert build.startswith("auto ")  # and not what the Makefile has for tests
    assert "tests/ops" in next(call for call in calls if "pytest" in call)


def test_what_is_measured_is_there(tmp_path: Path) -> None:
    """A case that nobody knows would be noticed on a borrowed GPU only."""
    parser = argparse.ArgumentParser()
    command.configure(parser)
    families = (gpu.gpu_cases, gpu_sparse.sparse_cases, gpu_masked.masked_cases)
    known = [case for family in (*families, gpu_dense.dense_cases) for case in family(False)]
    measured = [call.partition(" bench ")[2] for call in run(tmp_path)[2] if " bench --" in call]
    assert len(measured) >= 8
    for arguments in map(parser.parse_args, map(shlex.split, measured)):
        names = arguments.case.split(",")
        chosen = [case for case in known if case.id.startswith(tuple(names))]
        assert all(any(case.id.startswith(name) for case in chosen) for name in names)
        for dtype in arguments.dtype.split(","):
            assert any(dtype in case.dtypes for case in chosen)
        peers = {peer.name for case in chosen for peer in case.contenders}
        for name in (arguments.compare or "").split(","):
            assert any(peer.startswith(name) for peer in peers), name


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    status, log, _ = run(tmp_path, failing="*-m pytest*")
    assert status == 2  # make's word for 1
    parts = summary(log)
    assert parts.pop("tests") == "FAILED (3)"
    assert set(parts.values()) == {"ok"}
    assert "broken: 0" in log


def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    status, log, calls = run(tmp_path, failing="*is_available*")
    assert status == 2
    assert summary(log) == {"device": "FAILED (3)"}
    assert len(calls) == 1


def test_what_takes_too_long_leaves_the_rest_without_time(tmp_path: Path) -> None:
    status, log, _ = run(tmp_path, slow="*-m pytest*", seconds=6)
    assert status == 2
    parts = summary(log)
    assert re.fullmatch(r"FAILED: not done in \d s", parts["tests"])
    assert parts["tables"] == "FAILED: no time was left"
    assert parts["build"] == "ok"


def test_the_kernels_are_not_asked_for(tmp_path: Path) -> None:
    status, log, calls = run(tmp_path, SPARSEKERN_CUDA="0")
    assert status == 0
    assert "CUDA kernels" not in summary(log)
    assert next(call for call in calls if "setup.py" in call).startswith("0 ")
