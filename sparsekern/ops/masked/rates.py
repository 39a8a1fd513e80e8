"""The rates that the choice of algorithm is made from: shipped ones, or those of this machine.

``sparsekern tune`` measures them and leaves them in a cache file, one table for each processor,
instruction set and number of threads; where there is none, the shipped ones decide.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from . import corrections
from .corrections import Corrections

VARIABLE = "SPARSEKERN_TUNING"
CORRECTIONS = 49  # as many as choice.CORRECTED has places
_FORMAT = 1  # of the file; others are not read
_Table = TypeVar("_Table")


class DtypeRates(NamedTuple):
    """Of one dtype, operations (a multiplication and an addition are two) per thread and ns.

    Attributes:
        dense: of torch's matrix product.
        sparse: of the sparse product while the panel of a tile fits the second-level cache.
        sparse_far: beyond.
        convolution: of torch's convolution, 3 x 3 and at least 16 channels.
        sparse_convolution: of the sparse one.
        dense_pixel: nanoseconds of one thread for each pixel of both tensors of a convolution, the
            operations not counted: torch's.
        sparse_pixel: the sparse one's, to bring pixels into panels and out of them.
        corrections: of the ratio of the dense time to the sparse one, by part and kind of layer in
            the order of :data:`.choice.CORRECTED`; nothing where there are none.
    """

    dense: float
    sparse: float
    sparse_far: float
    convolution: float
    sparse_convolution: float
    dense_pixel: float
    sparse_pixel: float
    corrections: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rates:
    """All that a choice depends on besides sizes."""

    float32: DtypeRates
    float64: DtypeRates
    bfloat16: DtypeRates
    float16: DtypeRates

    def of(self, dtype: torch.dtype) -> DtypeRates:
        """Those of a dtype."""
        found: DtypeRates = getattr(self, _NAMES[dtype])
        return found


_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


# Measured by `sparsekern tune` with SPARSEKERN_ISA for each, on an AMD EPYC of family 25 (Zen 4)
# with 2 threads. The dense rates are torch's, which takes AVX512-BF16 there whatever ours is.
_AVX512_BF16 = Rates(
    float32=DtypeRates(85, 63, 53, 136, 69, 0.5, 0.7, corrections.AVX512_FLOAT32),
    float64=DtypeRates(50, 22, 20, 24, 34, 0.5, 0.76),
    bfloat16=DtypeRates(216, 57, 51, 273, 69, 0.5, 0.73, corrections.AVX512_BFLOAT16),
    float16=DtypeRates(22, 52, 48, 3.4, 69, 0.5, 0.86),
)
DEFAULTS = {
    "portable": Rates(
        float32=DtypeRates(85, 23, 21, 136, 28, 0.5, 1.0, corrections.PORTABLE_FLOAT32),
        float64=DtypeRates(50, 11, 10, 24, 13.5, 0.5, 1.8),
        bfloat16=DtypeRates(216, 23, 22, 273, 28, 0.5, 1.5),
        float16=DtypeRates(22, 18, 18, 3.4, 27, 0.5, 2.4),
    ),
    "avx2": Rates(
        float32=DtypeRates(85, 52, 48, 136, 51, 0.5, 0.6, corrections.AVX2_FLOAT32),
        float64=DtypeRates(50, 20, 19, 24, 26, 0.5, 0.93),
        bfloat16=DtypeRates(216, 51, 46, 273, 52, 0.5, 0.8),
        float16=DtypeRates(22, 43, 42, 3.4, 51, 0.5, 1.06),
    ),
    "avx512": _AVX512_BF16,
    "avx512_bf16": _AVX512_BF16,
    # Not measured on such a machine: its matrix unit has five times the rate of float32.
    "amx": replace(
        _AVX512_BF16, bfloat16=_AVX512_BF16.bfloat16._replace(dense=480, convolution=600)
    ),
}


# One thread shares nothing with a second: where memory decides, other algorithms are the faster.
_ONE_THREAD = {
    isa: replace(
        DEFAULTS[isa],
        float32=DEFAULTS[isa].float32._replace(corrections=corrections.AVX512_FLOAT32_ONE_THREAD),
    )
    for isa in ("avx512", "avx512_bf16", "amx")
}


def shipped(isa: str, threads: int) -> Rates:
    """The shipped rates of an instruction set and a number of threads."""
    known = _ONE_THREAD if threads == 1 else {}
    return known.get(isa) or DEFAULTS.get(isa, _AVX512_BF16)


@functools.cache
def rates(isa: str, threads: int) -> Rates:
    """The rates to choose by: tuned ones where there are any, else the shipped ones."""
    return tuned(isa, threads) or shipped(isa, threads)


def tuned(isa: str, threads: int) -> Rates | None:
    """What ``sparsekern tune`` found on this machine for these, if it has run.

    See :func:`cached` for files that cannot be read.
    """
    return cached(_key(isa, threads), _from_json)


def cached(key: str, parse: Callable[[dict[str, Any]], _Table]) -> _Table | None:
    """One table of the cache file, or None where it has none by this key.

    A file that cannot be read or understood is passed over with a warning: a choice of algorithm
    is not worth a failure.
    """
    path = cache_file()
    try:
        entry = entries(path).get(key)
        return None if entry is None else parse(entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(
            f"{path} is passed over, and the shipped rates are used: {error}. "
            "`sparsekern tune` writes it anew.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def save(found: Rates, isa: str, threads: int) -> Path:
    """Writes rates to the cache file, beside those of other instruction sets and thread counts.

    The file is replaced as a whole: who reads it meanwhile sees the old one or the new one.

    Returns:
        Where they are.

    Raises:
        OSError: if the file cannot be written.
    """
    entry = {field.name: getattr(found, field.name)._asdict() for field in fields(Rates)}
    path = write_entry(_key(isa, threads), entry)
    rates.cache_clear()
    return path


def write_entry(key: str, entry: dict[str, Any]) -> Path:
    """Writes one table to the cache file and leaves the others there; returns where it is.

    Raises:
        OSError: if the file cannot be written.
    """
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        known = entries(path)
    except (OSError, ValueError, AttributeError):
        known = {}
    known[key] = entry
    text = json.dumps({"format": _FORMAT, "rates": known}, indent=1) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return path


def cache_file() -> Path:
    """Where tuned rates are: ``SPARSEKERN_TUNING``, or a file in the user's cache folder."""
    asked = os.environ.get(VARIABLE)
    if asked:
        return Path(asked)
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(folder, "sparsekern", "rates.json")


def entries(path: Path) -> dict[str, Any]:
    """The tables of a cache file, by processor or GPU.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not such a file.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != _FORMAT:
        raise ValueError(f"its format is {content.get('format')}, and {_FORMAT} is expected")
    entries = content.get("rates")
    if not isinstance(entries, dict):
        raise ValueError(f"its rates must be a table, got {type(entries).__name__}")
    return entries


def _key(isa: str, threads: int) -> str:
    return f"{processor()}, {isa}, {threads} threads"


@functools.cache
def processor() -> str:
    """The processor's name, family and model, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    known = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    parts = (known.get("model name", platform.machine()), known.get("cpu family"))
    return " ".join(part for part in (*parts, known.get("model")) if part)


def _from_json(entry: dict[str, Any]) -> Rates:
    found = {}
    for field in fields(Rates):
        numbers = dict(entry[field.name])
        found_corrections = Corrections(numbers.pop("corrections", ()))
        own = DtypeRates(**numbers, corrections=found_corrections)
        every = (*own[:-1], *found_corrections)
        if not all(isinstance(number, (int, float)) and number > 0 for number in every):
            raise ValueError(f"the rates of {field.name} must be numbers above 0, got {own}")
        if found_corrections and len(found_corrections) != CORRECTIONS:
            raise ValueError(
                f"there must be {CORRECTIONS} corrections, got {len(found_corrections)}"
            )
        found[field.name] = own
    return Rates(**found)
