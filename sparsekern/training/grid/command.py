"""The command ``sparsekern grid``: which cells to train, and how many at a time."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..catalogue import METHODS

OUT = Path("runs/grid")
RECIPE = "quick"
SEEDS = 5
INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``sparsekern grid``."""
    parser.description = (
        "Train every method at sparsity 0.90, 0.95, 0.98 and 0.99, plain, with CKA-SR and with AP, "
        "over five seeds of the digits: about an hour on two cores. Cells that are done are "
        "skipped, those begun are resumed."
    )
    add = parser.add_argument
    add("--cell", action="append", help="METHOD-SPARSITY-VARIANT, only this one; repeatable")
    add("--method", action="append", help=f"only this one of {', '.join(METHODS)}; repeatable")
    add("--sparsity", type=float, action="append", help="only this one; repeatable")
    add("--variant", action="append", help="only this one of plain, ckasr, ap; repeatable")
    add("--recipe", default=RECIPE, help=f"what is trained (default: {RECIPE})")
    add("--model", help="default: the recipe's")
    add("--width", type=int, help="default: the model's")
    add("--list", action="store_true", help="print the cells and which are done, and train none")
    configure_trainings(parser, OUT, SEEDS, "the recipe's")


def configure_trainings(
    parser: argparse.ArgumentParser, out: Path, seeds: int, epochs: str
) -> None:
    """Adds the options of every command that trains in several processes.

    Args:
        parser: of the command.
        out: the default of ``--out``.
        seeds: that of ``--seeds``.
        epochs: that of ``--epochs``, in words.
    """
    add = parser.add_argument
    add("--out", type=Path, default=out, help=f"where the trainings' folders are (default: {out})")
    add("--seeds", type=int, default=seeds, help=f"default: {seeds}")
    add("--epochs", type=int, help=f"default: {epochs}")
    add("--jobs", type=int, help="trainings at a time, one thread each (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Trains what is asked for, and reports.

    Returns:
        0; 1 if a cell failed; ``INTERRUPTED`` after Ctrl-C, with everything ready to go on.

    Raises:
        ValueError: one line that says which option to change.
    """
    from ..recipe import load_recipe
    from .cells import all_cells, cell_named, state_of

    jobs = checked_jobs(args)
    cells = [cell_named(name) for name in args.cell] if args.cell else all_cells()
    for option, values in (
        ("method", args.method),
        ("sparsity", args.sparsity),
        ("variant", args.variant),
    ):
        if not values:
            continue
        known = {getattr(cell, option) for cell in cells}
        for value in values:
            if value not in known:
                names = ", ".join(map(str, sorted(known, key=str)))
                raise ValueError(f"--{option} must be one of {names}; got {value}")
        cells = [cell for cell in cells if getattr(cell, option) in values]
    given = given_settings(args, "epochs", "model", "width")
    recipe = load_recipe(args.recipe).values
    work = [(cell, cell.settings(recipe, given)) for cell in cells]
    states = [state_of(args.out / cell.name, settings) for cell, settings in work]
    if args.list:
        for (cell, _), state in zip(work, states, strict=True):
            print(f"{state:6}{cell.name}")
        return 0
    from .running import run_cells

    named = [(cell.name, settings) for cell, settings in work]
    return run_cells(named, states, args.out, jobs)


def given_settings(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The settings of every training: seeds, one thread, and those of the names that were given."""
    found = {name: getattr(args, name) for name in names}
    chosen = {name: value for name, value in found.items() if value is not None}
    return {"seeds": args.seeds, "threads": 1, **chosen}


def checked_jobs(args: argparse.Namespace) -> int:
    """How many processes train at a time.

    Raises:
        ValueError: if it is to be none.
    """
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    return args.jobs or _available_cores()


def _available_cores() -> int:
    """Those that this process may use, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
