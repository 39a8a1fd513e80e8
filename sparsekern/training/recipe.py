"""Recipes: TOML files with the values of a training, those of the papers among them.

A recipe has a ``title``, a ``source``, what the paper ``reported``, a table ``[train]`` with values
of ``Settings``, and tables ``[options.NAME]`` with arguments of a method or a regulariser. A recipe
may hold options of methods that it does not choose, for ``--method`` to choose.
"""

from __future__ import annotations

import importlib.resources
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from .settings import OPTIONS

_NOT_IN_RECIPES = ("recipe", "options", "threads", "compare", "first_seed")


@dataclass(frozen=True)
class Recipe:
    """What a file says.

    Attributes:
        name: of the recipe, or the file it comes from.
        title: what is trained.
        source: where its numbers come from.
        reported: what is reported there.
        values: for :func:`~sparsekern.training.settings.default_settings`.
    """

    name: str
    title: str
    source: str
    reported: str
    values: dict[str, Any]


def recipe_names() -> list[str]:
    """Those that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _folder().iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(name: str) -> Recipe:
    """Reads a recipe.

    Args:
        name: one of :func:`recipe_names`, or a file that ends in ``.toml``.

    Raises:
        ValueError: if there is none, or it says something that is not known.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--recipe {name} cannot be read: {error.strerror}") from None
    elif name in recipe_names():
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"--recipe must be a file that ends in .toml, or one of {', '.join(recipe_names())}; "
            f"got {name!r}"
        )
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--recipe {name} is no TOML: {error}") from None
    return _checked(name, content)


def _checked(name: str, content: dict[str, Any]) -> Recipe:
    unknown = content.keys() - {"title", "source", "reported", "train", "options"}
    values = content.get("train", {})
    known = [option for option in OPTIONS if option not in _NOT_IN_RECIPES]
    unknown |= values.keys() - set(known)
    if unknown:
        raise ValueError(
            f"--recipe {name} says {min(unknown)}, which is not known; [train] can say "
            f"{', '.join(known)}"
        )
    options = content.get("options", {})
    if not all(isinstance(table, dict) for table in options.values()):
        raise ValueError(f"--recipe {name}: options belong to a table such as [options.gmp]")
    return Recipe(
        name=name,
        title=content.get("title", name),
        source=content.get("source", ""),
        reported=content.get("reported", ""),
        values={**values, "options": options, "recipe": name},
    )


def _folder() -> Any:
    return importlib.resources.files(__package__) / "recipes"
