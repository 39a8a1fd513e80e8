"""The cells of the grid: one experiment each, in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalogue import METHODS
from ..settings import Settings, default_settings
from ..store import Store, holds_results, stored_settings

SPARSITIES = (0.90, 0.95, 0.98, 0.99)
# What is added to the method, by the name of the cell.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"regularizer": ()},
    "ckasr": {"regularizer": ("ckasr",)},
    "ap": {"regularizer": (), "ap": True},
}
DONE, BEGUN, OPEN = "done", "begun", "open"


@dataclass(frozen=True)
class Cell:
    """One method at one sparsity in one variant, over all seeds.

    Attributes:
        method: of ``catalogue.METHODS``.
        sparsity: 0 for dense training.
        variant: of ``VARIANTS``.
    """

    method: str
    sparsity: float
    variant: str

    @property
    def name(self) -> str:
        """``gmp-0.95-ckasr``; also the name of its folder."""
        return f"{self.method}-{self.sparsity:g}-{self.variant}"

    def settings(self, recipe: dict[str, Any], given: dict[str, Any]) -> Settings:
        """The experiment, in the recipe's values but for those given."""
        values = {"method": self.method, "sparsity": self.sparsity, **VARIANTS[self.variant]}
        return default_settings({**given, **values}, recipe=recipe)


def all_cells() -> list[Cell]:
    """The whole grid; the cheapest comparisons first: plain methods, by sparsity.

    Dense training has one sparsity and no AP.
    """
    cells = []
    for variant in VARIANTS:
        if variant != "ap":
            cells.append(Cell("dense", 0.0, variant))
        cells += [
            Cell(method, sparsity, variant)
            for sparsity in SPARSITIES
            for method in METHODS
            if method != "dense"
        ]
    return cells


def cell_named(name: str) -> Cell:
    """The cell of this name; other sparsities than the grid's are cells too.

    Raises:
        ValueError: if it is none.
    """
    method, _, rest = name.partition("-")
    sparsity, _, variant = rest.rpartition("-")
    try:
        value = float(sparsity)
    except ValueError:
        value = -1.0
    if method not in METHODS or variant not in VARIANTS or not 0 <= value < 1:
        raise ValueError(
            f"--cell must be METHOD-SPARSITY-VARIANT such as gmp-0.95-ckasr, with a method of "
            f"{', '.join(METHODS)} and a variant of {', '.join(VARIANTS)}; got {name!r}"
        )
    return Cell(method, value, variant)


def state_of(directory: Path, settings: Settings) -> str:
    """Whether the experiment in a folder is ``DONE``, ``BEGUN`` or still ``OPEN``.

    Raises:
        ValueError: if the folder holds an experiment with other settings.
    """
    if not holds_results(directory):
        return OPEN
    stored = stored_settings(directory)
    if stored != settings:
        before, now = stored.as_json(), settings.as_json()
        name = next(key for key in now if now[key] != before[key])
        raise ValueError(
            f"{directory} was made with {name} {before[name]}, and now it is {now[name]}: choose "
            "another --out, or give the same options"
        )
    complete = [record for record in Store(directory).records() if record["kind"] == "run"]
    return DONE if len(complete) == settings.seeds else BEGUN
