"""Launch configurations: block sizes, warps and pipeline stages per kernel, device class and shape.

They are shipped as JSON and never searched for at run time: another choice is another order of
adding, and other bits. A device class without an entry of its own takes "default", and says so
once in the log.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("configurations.json")
VARIABLE = "SPARSEKERN_TRITON_CONFIGURATIONS"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Configuration:
    """How one kernel is launched: columns (or entries) at a time, warps, pipeline stages."""

    block: int
    warps: int
    stages: int


@functools.cache
def _table() -> Mapping[str, Any]:
    path = Path(os.environ.get(VARIABLE) or _FILE)
    table = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict) or "default" not in table:
        raise ValueError(f'{path} holds no launch configurations: expected a "default" entry')
    return table


@functools.cache
def configuration(device_class: str, kernel: str, operands: str, rows: int) -> Configuration:
    """The configuration of a kernel.

    Args:
        device_class: as :func:`..device.device_class` names it, such as ``"cuda:9.0"``.
        kernel: the kernel's name.
        operands: what its matrix products take: ``"ieee"``, ``"tf32"``, ``"tf32x3"``, ``"bf16"``,
            ``"fp16"`` or ``"fp64"``.
        rows: samples, rounded up to what the kernel has tiles for.
    """
    table = _table()
    for name in (device_class, "default"):
        by_operands = table.get(name, {}).get(kernel, {})
        by_rows = by_operands.get(operands) or by_operands.get("any")
        if by_rows and (str(rows) in by_rows or "any" in by_rows):
            if name != device_class:
                _log_fallback(device_class)
            return Configuration(**by_rows.get(str(rows), by_rows.get("any")))
    raise KeyError(f"no launch configuration for {kernel}, {operands}, {rows} rows")


@functools.cache
def _log_fallback(device_class: str) -> None:
    _log.info("no launch configurations for %s: the default ones are used", device_class)
