"""What the times depend on: the processor, the versions, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from .. import info
from . import git, peers

# Names the commit where there is a copy of the files without git's own.
_COMMIT = "SPARSEKERN_COMMIT"


def describe() -> dict[str, str]:
    """Processor, cores, ISA of the compiled core, and the versions of everything measured."""
    known = info()
    result = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "isa": known.cpu.isa if known.cpu is not None else "none: no compiled core",
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparsekern": known.version,
    }
    if torch.cuda.is_available():
        result["gpu"] = torch.cuda.get_device_name()
        result["driver"] = _driver()
        result["cuda"] = torch.version.cuda or "none"
        result["triton"] = known.triton or "absent"
    return result | {name: peers.version(name) or "absent" for name in peers.PACKAGES}


def stamp() -> dict[str, str]:
    """Today's date, and the commit where the package runs from a git checkout."""
    return {"date": datetime.date.today().isoformat(), "commit": _commit()}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.split("\n")[0].strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    name = fields.get("model name", platform.machine())
    family = fields.get("cpu family")
    return f"{name} (family {family}, model {fields.get('model')})" if family else name


def _commit() -> str:
    told = os.environ.get(_COMMIT)
    if told:
        return told

    try:
        if not git.ask("ls-files", "sparsekern/bench/machine.py"):
            return ""
        changed = git.ask(
            "status", "--porcelain", "--untracked-files=no", "--", "sparsekern", "csrc"
        )
        return git.ask("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")
    except git.GitError:
        return ""
