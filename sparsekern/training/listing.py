"""What ``sparsekern train --list`` prints: models, data, methods, regularisers, recipes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from .catalogue import DATA, METHODS, MODELS, REGULARIZERS
from .recipe import load_recipe, recipe_names

_COLUMNS = 100


def listing() -> str:
    """The names that the options of ``sparsekern train`` take, with a line about each."""
    parts = [
        _section(
            "--method",
            (
                (name, f"{method.about} ({method.source})" if method.source else method.about)
                for name, method in METHODS.items()
            ),
        ),
        _section("--regularizer (repeatable)", REGULARIZERS.items()),
        _section(
            "--ap", [("ap", "along with a method: prunes for active neurons (Liu et al. 2022)")]
        ),
        _section(
            "--model (--width)",
            (
                (name, f"{model.source}; width {model.width}: {model.width_of}")
                for name, model in MODELS.items()
            ),
        ),
        _section(
            "--data (in --data-dir)",
            (
                (name, f"{data.about}: {data.files}" if data.files else data.about)
                for name, data in DATA.items()
            ),
        ),
        _section("--recipe", ((name, _about(name)) for name in recipe_names())),
    ]
    return "\n\n".join(parts)


def _about(name: str) -> str:
    recipe = load_recipe(name)
    reported = f" Reported: {recipe.reported}." if recipe.reported else ""
    return f"{recipe.title}. Source: {recipe.source}.{reported}"


def _section(title: str, entries: Iterable[tuple[str, str]]) -> str:
    entries = list(entries)
    indent = 4 + max(len(name) for name, _ in entries)
    lines = [
        textwrap.fill(f"  {name:<{indent - 2}}{text}", _COLUMNS, subsequent_indent=" " * indent)
        for name, text in entries
    ]
    return "\n".join([title, *lines])
