"""The command ``sparsekern effects``: which claims to test, over how many seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..grid.command import checked_jobs, configure_trainings, given_settings

OUT = Path("runs/effects")
SEEDS = 5
REPORT = "effects.md"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``sparsekern effects``."""
    parser.description = (
        "Train each method beside what it promises to be better than, on digits, and say what the "
        "runs show, paired by seed. A few minutes on two cores; what is done is skipped, what is "
        "begun is resumed."
    )
    parser.add_argument(
        "--only", action="append", metavar="CLAIM", help="ckasr, art, ...; repeatable"
    )
    configure_trainings(parser, OUT, SEEDS, "as each claim has it")


def run(args: argparse.Namespace) -> int:
    """Trains what is missing, and reports.

    Returns:
        0; 1 if a training failed; 130 after Ctrl-C, with everything ready to go on.

    Raises:
        ValueError: one line that says which option to change.
    """
    from rich.console import Console

    from ..grid.cells import state_of
    from ..grid.running import train_cells
    from ..store import write_atomically
    from .claims import CLAIMS
    from .verdicts import report

    jobs = checked_jobs(args)
    names = [claim.name for claim in CLAIMS]
    for name in args.only or ():
        if name not in names:
            raise ValueError(f"--only must be one of {', '.join(names)}; got {name!r}")
    claims = [claim for claim in CLAIMS if not args.only or claim.name in args.only]
    given = given_settings(args, "epochs")
    work = [(arm.name, arm.settings(given)) for claim in claims for arm in claim.arms]
    states = [state_of(args.out / name, settings) for name, settings in work]
    console = Console(markup=False)  # paths and messages may hold brackets
    status, trained = train_cells(work, states, args.out, jobs, console)
    if trained and not status:
        text = report(claims, args.out)
        write_atomically(args.out / REPORT, text.encode())
        console.print(text, soft_wrap=True, highlight=False)
        console.print(f"Written: {args.out / REPORT}", soft_wrap=True, highlight=False)
    return status
