"""``--base``: two versions side by side, and what counts as moved."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsekern.bench import base
from sparsekern.bench.base import Movement

_ROOT = Path(__file__).parents[2]
_COMMAND = (sys.executable, "-m", "sparsekern", "bench", "--base", "HEAD", "--quick")
_WORK = ("--case", "gram-64", "--backend", "reference", "--threads", "1")


def _git(folder, *words):
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ("git", *identity, *words), cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A git repository of the package alone, one commit old."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_cpu_build_note.txt")
    shutil.copytree(_ROOT / "sparsekern", folder / "sparsekern", ignore=ignore)
    shutil.copytree(_ROOT / "csrc", folder / "csrc")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, folder)
    _git(folder, "init", "-q")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", "base")
    return folder


def _environment(folder):
    # The core is left out: this is about the comparison, and compiling takes minutes.
    scratch = folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    changes = {"PYTHONPATH": str(folder), "SPARSEKERN_CPU": "0", "TMPDIR": str(scratch)}
    return {**os.environ, **changes}


def _is_clean(folder):
    worktrees = _git(folder, "worktree", "list").splitlines()
    return len(worktrees) == 1 and not list((folder.parent / "scratch").iterdir())


def _slow_down(folder):
    path = folder / "sparsekern" / "ops" / "similarity" / "reference.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + _SLOWER, encoding="utf-8")


_SLOWER = """

import time

_gram_as_it_was = gram


def gram(*arguments):
    time.sleep(0.005)
    return _gram_as_it_was(*arguments)
"""


def test_a_change_that_slows_down_is_found_and_nothing_is_left(checkout):
    _slow_down(checkout)
    done = subprocess.run(
        (*_COMMAND, *_WORK),
        cwd=checkout,
        env=_environment(checkout),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("gram-64")]
    assert line.endswith("slower")
    assert _is_clean(checkout)


def test_ctrl_c_leaves_nothing(checkout):
    running = subprocess.Popen(
        (*_COMMAND, *_WORK),
        cwd=checkout,
        env=_environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert running.stdout.readline().startswith("building HEAD")
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert _is_clean(checkout)


def test_a_ref_that_is_none_is_one_line():
    with pytest.raises(ValueError, match="'no-such-ref' is not a commit of a git checkout"):
        next(base.compare("no-such-ref", [], None, print))


def test_the_interval_holds_the_median_99_times_of_100():
    generator = random.Random(0)
    for count in (11, 21, 41):
        held = 0
        for _ in range(2000):
            low, high = base.median_interval([generator.expovariate(1) for _ in range(count)])
            held += low <= 0.6931 <= high
        assert 0.985 <= held / 2000 <= 1
    assert base.median_interval([3, 1, 2]) == (1, 3)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.06, 1.3, "faster"), (0.7, 0.94, "slower"), (1.01, 1.3, "same"), (0.96, 1.04, "same")],
)
def test_only_what_is_wholly_beyond_the_margin_has_moved(low, high, verdict):
    assert Movement("S1", 1.0, low, high, 1.0).verdict == verdict
    assert Movement("S1", problem="base: failed").verdict == "base: failed"
