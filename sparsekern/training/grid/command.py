"""The command ``sparsekern grid``: which cells to train, and how many at a time."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

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
    add("--out", type=Path, default=OUT, help=f"where the cells' folders are (default: {OUT})")
    add("--cell", action="append", help="METHOD-SPARSITY-VARIANT, only this one; repeatable")
    add("--method", action="append", help=f"only this one of {', '.join(METHODS)}; repeatable")
    add("--sparsity", type=float, action="append", help="only this one; repeatable")
    add("--variant", action="append", help="only this one of plain, ckasr, ap; repeatable")
    add("--recipe", default=RECIPE, help=f"what is trained (default: {RECIPE})")
    add("--seeds", type=int, default=SEEDS, help=f"default: {SEEDS}")
    add("--epochs", type=int, help="default: the recipe's")
    add("--model", help="default: the recipe's")
    add("--width", type=int, help="default: the model's")
    add("--jobs", type=int, help="cells at a time, one thread each (default: one for each core)")
    add("--list", action="store_true", help="print the cells and which are done, and train none")


def run(args: argparse.Namespace) -> int:
    """Trains what is asked for, and reports.

    Returns:
        0; 1 if a cell failed; ``INTERRUPTED`` after Ctrl-C, with everything ready to go on.

    Raises:
        ValueError: one line that says which option to change.
    """
    from ..recipe import load_recipe
    from .cells import all_cells, cell_named, state_of

    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
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
    given = {"seeds": args.seeds, "threads": 1}
    for name in ("epochs", "model", "width"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    recipe = load_recipe(args.recipe).values
    work = [(cell, cell.settings(recipe, given)) for cell in cells]
    states = [state_of(args.out / cell.name, settings) for cell, settings in work]
    if args.list:
        for (cell, _), state in zip(work, states, strict=True):
            print(f"{state:6}{cell.name}")
        return 0
    from .running import run_cells

    named = [(cell.name, settings) for cell, settings in work]
    return run_cells(named, states, args.out, args.jobs or available_cores())


def available_cores() -> int:
    """Those that this process may use, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
