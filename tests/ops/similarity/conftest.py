"""Triton kernels compiled for GPUs that are not here, while other tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsekern
from sparsekern.ops.similarity.triton import configurations

CAPABILITIES = (80, 90, 100, 120)


@pytest.fixture(scope="session")
def triton_compilers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[int, tuple[subprocess.Popen[bytes], Path]]]:
    """One process per compute capability, behind everything else, and where it writes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment[configurations.VARIABLE] = configurations.SHIPPED
    root = str(Path(sparsekern.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    script = str(Path(__file__).with_name("triton_aot.py"))
    behind = ["nice", "-n", "10"] if shutil.which("nice") else []
    started = {}
    for capability in CAPABILITIES:
        folder = tmp_path_factory.mktemp(f"sm_{capability}")
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            command = [*behind, sys.executable, "-W", "ignore", script, str(capability)]
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        started[capability] = (process, folder)
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="session", autouse=True)
def compile_meanwhile(request: pytest.FixtureRequest) -> None:
    """Compiling takes minutes, and the tests before it one core: it begins with the first."""
    if any(item.path.stem == "test_triton_compiled" for item in request.session.items):
        request.getfixturevalue("triton_compilers")
