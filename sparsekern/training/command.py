"""The command ``sparsekern train``: its options, and what it does with them.

Its imports are light, so that the options can be listed without loading PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .catalogue import MODELS
from .settings import (
    ALL_SAMPLES,
    HELD_OUT,
    OPTIONS,
    REGULARIZERS,
    Settings,
    default_settings,
)

INTERRUPTED = 130  # the exit status of a program that Ctrl-C stopped


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``sparsekern train``."""
    parser.description = (
        "Train a sparse network on handwritten digits, with and without a CKA regulariser."
    )
    add = parser.add_argument
    # No option has a default here: --resume must know which ones were given.
    add("--model", help=f"{', '.join(MODELS)} (default: {Settings.model})")
    add("--width", type=int, help=f"channels of the first stage (default: {Settings.width})")
    add("--sparsity", type=float, help=f"share of zeros (default: {Settings.sparsity})")
    add("--regularizer", help=f"{', '.join(REGULARIZERS)} (default: {Settings.regularizer})")
    add("--compare", action="store_true", default=None, help="train without it too, and compare")
    add("--beta", type=float, help="weight of the regulariser (default: by regulariser)")
    add(
        "--samples",
        type=int,
        help=f"images of a batch it looks at, {ALL_SAMPLES} for all (default: by regulariser)",
    )
    add("--every", type=int, help="it acts on every so many batches (default: by regulariser)")
    add("--seeds", type=int, help=f"number of seeds (default: {Settings.seeds})")
    add("--epochs", type=int, help=f"default: {Settings.epochs}")
    add("--batch-size", type=int, help=f"default: {Settings.batch_size}")
    add("--lr", type=float, help=f"first learning rate (default: {Settings.lr})")
    add(
        "--held-out",
        help=f"measure on {' or '.join(HELD_OUT)} images (default: {Settings.held_out})",
    )
    add("--threads", type=int, help="compute threads (default: PyTorch's)")
    add("--out", type=Path, help="directory for the results (default: runs/...)")
    add("--resume", action="store_true", help="go on with the interrupted training in --out")
    add("--overwrite", action="store_true", help="replace the results that --out holds")
    add("--demo", action="store_true", help="a small comparison in a few minutes, in runs/demo")


def run(args: argparse.Namespace) -> int:
    """Trains, or goes on training, and reports.

    Returns:
        0, or ``INTERRUPTED`` after Ctrl-C, with a checkpoint left to resume from.

    Raises:
        ValueError: one line that says which option to change.
    """
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    directory = args.out
    if args.resume:
        directory = directory or (Path("runs/demo") if args.demo else None)
        if directory is None:
            raise ValueError("--resume needs the --out of the training to go on with")
        settings = _settings_to_resume(directory, given)
    else:
        settings = default_settings({"threads": _torch_threads(), **given}, demo=args.demo)
        directory = directory or Path("runs/demo" if args.demo else _default_directory(settings))
    from .experiment import run_experiment

    # The demo's own directory is replaced without asking; a directory the user named is not.
    overwrite = args.overwrite or (args.demo and args.out is None)
    finished = run_experiment(settings, directory, resume=args.resume, overwrite=overwrite)
    return 0 if finished else INTERRUPTED


def _settings_to_resume(directory: Path, given: dict[str, Any]) -> Settings:
    from .store import stored_settings

    stored = stored_settings(directory)
    for name, value in given.items():
        if stored.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} {value} differs from the {stored.get(name)} that {directory} was "
                f"started with: leave {option} out to go on, or choose another --out"
            )
    return Settings(**stored)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _default_directory(settings: Settings) -> str:
    return f"runs/{settings.model}-{settings.sparsity:g}-{settings.regularizer}"
