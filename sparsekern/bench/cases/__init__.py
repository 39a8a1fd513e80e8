"""The registry: one module of cases per operator family, each with ``cases(quick)``.

A module of this folder with a function ``cases(quick: bool) -> list[Case]`` is part of the
registry; nothing else has to be told of it. With ``quick`` the function returns smaller versions of
its cases, of the same ids, and leaves out those that have none. It is called whenever a command
looks for cases, so it makes no tensors: inputs are made by the case when it is run.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable

from ..case import OURS, AnyCase

# The order of tables; families that are not named here come after these.
_ORDER = (
    "similarity",
    "regularizers",
    "masked",
    "sampled",
    "masked_conv",
    "selection",
    "penalties",
    "activity",
    "analysis",
    "training",
)


def _families() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(
        names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)
    )


@functools.cache
def _family(name: str, quick: bool) -> tuple[AnyCase, ...]:
    return tuple(importlib.import_module(f".{name}", __package__).cases(quick))


@functools.cache
def registry(quick: bool = False) -> tuple[AnyCase, ...]:
    """All cases, family by family."""
    return tuple(case for name in _families() for case in _family(name, quick))


def suites() -> list[str]:
    """The suites that have cases, in registry order."""
    return list(dict.fromkeys(case.suite for case in registry()))


def case_order() -> list[str]:
    """Ids of all cases in registry order."""
    return [case.id for case in registry()]


def select(
    suite: str | None = None, names: Iterable[str] | None = None, quick: bool = False
) -> list[AnyCase]:
    """The cases to run, in registry order.

    Args:
        suite: one of :func:`suites`, several with commas between them, or None for all.
        names: ids or beginnings of ids (``S2`` for ``S2`` and ``S2-imagenet``), or None for all.
        quick: takes the smaller versions, and leaves out cases that have none.

    Raises:
        ValueError: for a suite or name that is not registered, or if nothing is left to run.
    """
    wanted_suites = None if suite is None else _split(suite)
    for name in wanted_suites or ():
        if name not in suites():
            raise ValueError(f"--suite must be among {', '.join(suites())}, got {name!r}")
    wanted = None if names is None else [name.strip() for name in names]
    for name in wanted or ():
        if not any(_is_named(case, name) for case in registry()):
            known = dict.fromkeys(case.id.split("-")[0] for case in registry())
            raise ValueError(
                f"--case must be among {', '.join(known)}, or an id that starts so, got {name!r}"
            )

    def is_chosen(case: AnyCase) -> bool:
        return (wanted_suites is None or case.suite in wanted_suites) and (
            wanted is None or any(_is_named(case, name) for name in wanted)
        )

    kept = [case for case in registry(quick) if is_chosen(case)]
    if not kept:
        hint = " without --quick" if quick and any(map(is_chosen, registry())) else ""
        raise ValueError(f"no case is left of this --suite and --case; try them{hint}")
    return kept


def find(case_id: str, quick: bool = False) -> AnyCase:
    """The case of exactly this id.

    Families are looked through one by one, and those that do not import are passed over: with
    ``--base`` this harness runs on an older package, which may lack a later family's operators.

    Raises:
        ValueError: if there is none, or it has no quick version.
    """
    problem = ""
    for name in _families():
        try:
            family = _family(name, quick)
        except (ImportError, AttributeError) as error:
            problem = f" ({name}: {error})"
            continue
        for case in family:
            if case.id == case_id:
                return case
    raise ValueError(f"no case {case_id!r}{' with a quick version' if quick else ''}{problem}")


def compare_names(text: str | None) -> tuple[str, ...] | None:
    """Parses ``--compare``: contender names; one that others start with selects them all.

    Raises:
        ValueError: for a name that no case has as a baseline.
    """
    if text is None:
        return None
    found = {contender.name for case in registry() for contender in case.contenders}
    known = sorted(found - {OURS})
    result: list[str] = []
    for name in _split(text):
        matches = [other for other in known if other == name or other.startswith(name + "_")]
        if not matches:
            raise ValueError(f"--compare must be among {', '.join(known)}, got {name!r}")
        result += matches
    return tuple(dict.fromkeys(result))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_named(case: AnyCase, name: str) -> bool:
    return case.id == name or case.id.startswith(name + "-")
