"""``sparsekern tune``: measures this machine's rates and keeps them for later runs."""

from __future__ import annotations

import argparse

from .. import native
from ..ops.masked import rates


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--threads", type=int, help="torch's threads (default: as torch has them)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the rates, and leave the cache file as it is"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError: if the compiled core is missing, or for a number of threads below 1.
    """
    import torch

    from . import measure

    reason = native.cpu_missing_reason()
    if reason:
        raise ValueError(f"there is no choice of algorithm to tune here: {reason}")
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    isa, threads = str(native.cpu().isa()), torch.get_num_threads()
    print(f"instruction set {isa}, {threads} threads", flush=True)
    found = measure.measure(lambda text: print(text, flush=True))
    if not arguments.dry_run:
        print(f"saved in {rates.save(found, isa, threads)}")
    return 0
