"""Launch configurations: block sizes, warps and pipeline stages per kernel, device class and shape.

They are shipped as JSON and never searched for unasked: another choice is another order of adding,
and other bits. A device class has entries of its own where they differ from "default"; one that has
none says so once in the log. ``sparsekern tune --device cuda`` measures what is fastest on the GPU
at hand and keeps it in a file, whose entries go before the shipped ones.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("configurations.json")
VARIABLE = "SPARSEKERN_TRITON_CONFIGURATIONS"
SHIPPED = "shipped"  # value of the variable: no file of tuned ones is read
_DEFAULT = "default"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Configuration:
    """How one kernel is launched: columns (or entries) at a time, warps, pipeline stages."""

    block: int
    warps: int
    stages: int


# Kernel, operands and rows, as configuration() takes them.
Key = tuple[str, str, int]
# What overriding() says, before every file.
_overrides: dict[Key, Configuration] = {}


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
    if (kernel, operands, rows) in _overrides:
        return _overrides[kernel, operands, rows]
    tuned = _find(_tuned().get(device_class, {}), kernel, operands, rows)
    return tuned or shipped(device_class, kernel, operands, rows)


def shipped(device_class: str, kernel: str, operands: str, rows: int) -> Configuration:
    """As :func:`configuration`, whatever has been tuned."""
    tables = _shipped()
    found = _find(tables.get(device_class, {}), kernel, operands, rows)
    if found:
        return found
    if device_class not in tables:
        _log_fallback(device_class)
    found = _find(tables[_DEFAULT], kernel, operands, rows)
    if not found:
        raise KeyError(f"no launch configuration for {kernel}, {operands}, {rows} rows")
    return found


@contextlib.contextmanager
def overriding(entries: Mapping[Key, Configuration]) -> Iterator[None]:
    """Inside the ``with`` block, in every thread, these entries go before all others."""
    before = dict(_overrides)
    _overrides.update(entries)
    configuration.cache_clear()
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)
        configuration.cache_clear()


def shipped_keys(device_class: str) -> list[Key]:
    """What the shipped file names for a device class, the defaults included."""
    names: dict[Key, None] = {}
    for table in (_shipped()[_DEFAULT], _shipped().get(device_class, {})):
        for kernel, by_operands in table.items():
            for operands, by_rows in by_operands.items():
                for rows in by_rows:
                    names[kernel, operands, 0 if rows == "any" else int(rows)] = None
    return list(names)


def tuned_file() -> Path | None:
    """Where tuned entries are: the file that the environment names, or one in the user's cache.

    None where the environment asks for the shipped ones.
    """
    asked = os.environ.get(VARIABLE)
    if asked == SHIPPED:
        return None
    if asked:
        return Path(asked)
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(folder, "sparsekern", "launches.json")


def tuned_classes() -> list[str]:
    """Device classes that tuned entries are used for."""
    return sorted(_tuned())


def save(device_class: str, entries: Mapping[Key, Configuration]) -> Path:
    """Writes tuned entries to the file, in place of those of the same device class.

    The file is replaced as a whole: who reads it meanwhile sees the old one or the new one.

    Returns:
        Where they are.

    Raises:
        ValueError: if the environment asks for the shipped ones.
        OSError: if the file cannot be written.
    """
    path = tuned_file()
    if path is None:
        raise ValueError(f"{VARIABLE} is {SHIPPED!r}: there is no file to keep tuned entries in")
    _tuned.cache_clear()
    tables = {name: table for name, table in _tuned().items() if name != device_class}
    own: dict[str, Any] = {}
    for (kernel, operands, rows), entry in entries.items():
        by_rows = own.setdefault(kernel, {}).setdefault(operands, {})
        by_rows[str(rows) if rows else "any"] = asdict(entry)
    tables[device_class] = own
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(tables, indent=1) + "\n")
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    forget()
    return path


def forget() -> None:
    """Has the files read again, as after a change of the environment."""
    _tuned.cache_clear()
    configuration.cache_clear()


@functools.cache
def _shipped() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return table


@functools.cache
def _tuned() -> Mapping[str, Any]:
    """Tuned entries by device class; none of a file that cannot be read or understood.

    Such a file is passed over with a warning: how a kernel is launched is not worth a failure.
    """
    path = tuned_file()
    if path is None:
        return {}
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        for table in tables.values():
            for by_operands in table.values():
                for by_rows in by_operands.values():
                    for entry in by_rows.values():
                        _checked(entry)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(
            f"{path} is passed over, and the shipped launch configurations are used: {error}. "
            "`sparsekern tune --device cuda` writes it anew.",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    checked: Mapping[str, Any] = tables
    return checked


def _find(table: Mapping[str, Any], kernel: str, operands: str, rows: int) -> Configuration | None:
    by_operands = table.get(kernel, {})
    by_rows = by_operands.get(operands) or by_operands.get("any") or {}
    entry = by_rows.get(str(rows)) or by_rows.get("any")
    return None if entry is None else _checked(entry)


def _checked(entry: Mapping[str, Any]) -> Configuration:
    """An entry of a file.

    Raises:
        ValueError: if a number is missing or below 1, or the block or the warps no power of two.
        TypeError: if an entry has anything else, or is no table.
    """
    found = Configuration(**entry)
    for name, number in asdict(found).items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be an integer above 0, got {number!r}")
        if name != "stages" and number & (number - 1):
            raise ValueError(f"{name} must be a power of two, got {number}")
    return found


@functools.cache
def _log_fallback(device_class: str) -> None:
    _log.info("no launch configurations for %s: the default ones are used", device_class)
