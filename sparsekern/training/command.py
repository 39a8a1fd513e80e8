"""The command ``sparsekern train``: its options, and what it does with them.

Its imports are light, so that the options can be listed without loading PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .catalogue import DATA, METHODS, MODELS, REGULARIZERS
from .recipe import load_recipe
from .settings import (
    ALL_SAMPLES,
    HELD_OUT,
    NONE,
    OPTIMIZERS,
    OPTIONS,
    SCHEDULES,
    Settings,
    default_settings,
)

INTERRUPTED = 130  # the exit status of a program that Ctrl-C stopped


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``sparsekern train``."""
    parser.description = (
        "Train sparse networks by one of several methods, with and without regularisers, over "
        "seeds. Without options: random masks and CKA-SR on handwritten digits."
    )
    add = parser.add_argument
    # No option has a default here: --resume must know which ones were given.
    add("--list", action="store_true", help="print what there is to choose from, and the recipes")
    add("--recipe", help="values of a paper, quick, or a TOML file; other options come before it")
    add("--method", help=f"{', '.join(METHODS)} (default: {Settings.method})")
    add("--sparsity", type=float, help=f"share of zeros (default: {Settings.sparsity})")
    add("--model", help=f"{', '.join(MODELS)} (default: {Settings.model})")
    add("--width", type=int, help="of the network (default: the paper's; see --list)")
    add("--data", help=f"{', '.join(DATA)} (default: {Settings.data})")
    add("--data-dir", help=f"where its files are (default: {Settings.data_dir})")
    add("--image-size", type=int, help=f"of imagefolder (default: {Settings.image_size})")
    add(
        "--regularizer",
        action="append",
        help=f"{', '.join((NONE, *REGULARIZERS))}; repeat it for several (default: ckasr, none "
        "with --method)",
    )
    add("--ap", action="store_true", default=None, help="AP along with the method")
    add("--compare", action="store_true", default=None, help="train without it too, and compare")
    add("--beta", type=float, help="weight of the CKA regulariser (default: by regulariser)")
    add(
        "--samples",
        type=int,
        help=f"images of a batch it looks at, {ALL_SAMPLES} for all (default: by regulariser)",
    )
    add("--every", type=int, help="it acts on every so many batches (default: by regulariser)")
    add(
        "--set",
        action="append",
        metavar="NAME.OPTION=VALUE",
        help="any argument of a method or regulariser, as rst.distribution=uniform",
    )
    add("--seeds", type=int, help=f"number of seeds (default: {Settings.seeds})")
    add("--first-seed", type=int, help=f"the first of them (default: {Settings.first_seed})")
    add("--epochs", type=int, help=f"default: {Settings.epochs}")
    add("--batch-size", type=int, help=f"default: {Settings.batch_size}")
    add("--optimizer", help=f"{', '.join(OPTIMIZERS)} (default: {Settings.optimizer})")
    add("--lr", type=float, help=f"highest learning rate (default: {Settings.lr})")
    add("--momentum", type=float, help=f"of SGD (default: {Settings.momentum})")
    add("--nesterov", action=argparse.BooleanOptionalAction, default=None, help="its kind")
    add("--weight-decay", type=float, help=f"default: {Settings.weight_decay}")
    add("--schedule", help=f"{', '.join(SCHEDULES)} (default: {Settings.schedule})")
    add(
        "--milestones",
        type=float,
        nargs="+",
        help="of steps, as shares of the epochs (default: 0.5 0.75)",
    )
    add("--gamma", type=float, help=f"factor at a milestone (default: {Settings.gamma})")
    add("--warmup", type=int, help=f"epochs of growing rate (default: {Settings.warmup})")
    add("--label-smoothing", type=float, help=f"default: {Settings.label_smoothing}")
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
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    if args.list:
        from .listing import listing

        print(listing())
        return 0
    if args.set:
        given["options"] = _options(args.set)
    given.pop("recipe", None)
    directory = args.out
    if args.resume:
        if args.recipe:
            raise ValueError("--recipe is known from the training to go on with: leave it out")
        directory = directory or (Path("runs/demo") if args.demo else None)
        if directory is None:
            raise ValueError("--resume needs the --out of the training to go on with")
        settings = _settings_to_resume(directory, given)
    else:
        recipe = load_recipe(args.recipe).values if args.recipe else None
        given.setdefault("threads", _torch_threads())
        settings = default_settings(given, demo=args.demo, recipe=recipe)
        directory = directory or Path("runs/demo" if args.demo else _default_directory(settings))
    from .experiment import run_experiment

    # The demo's own directory is replaced without asking; a directory the user named is not.
    overwrite = args.overwrite or (args.demo and args.out is None)
    finished = run_experiment(settings, directory, resume=args.resume, overwrite=overwrite)
    return 0 if finished else INTERRUPTED


def _options(given: list[str]) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and name and option):
            raise ValueError(f"--set {text} must have the form NAME.OPTION=VALUE")
        try:
            options.setdefault(name, {})[option] = json.loads(value)
        except json.JSONDecodeError:
            options.setdefault(name, {})[option] = value  # a word
    return options


def _settings_to_resume(directory: Path, given: dict[str, Any]) -> Settings:
    from .store import stored_settings

    stored = stored_settings(directory)
    wanted = Settings(**{**stored.as_json(), **given}).as_json()
    for name, value in stored.as_json().items():
        if wanted[name] != value:
            option = "--set" if name == "options" else f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} {wanted[name]} differs from the {value} that {directory} was "
                f"started with: leave {option} out to go on, or choose another --out"
            )
    return stored


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _default_directory(settings: Settings) -> str:
    parts = (settings.data, settings.model, settings.method, f"{settings.sparsity:g}")
    return "-".join(("runs/" + parts[0], *parts[1:], settings.variants[-1]))
