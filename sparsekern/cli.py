"""The command line: ``sparsekern info | train | grid | effects | report | bench | ...``."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ._version import __version__

# Each lives in sparsekern/<folder>/command.py: configure(parser), run(arguments) -> exit status.
_COMMANDS = {
    "train": ("training", "train sparse networks, with and without regularisers"),
    "grid": ("training.grid", "train all methods at several sparsities, and compare them"),
    "effects": ("training.effects", "whether methods do what they promise, each against others"),
    "report": ("training.reporting", "compare the results of train and grid: tables, pictures"),
    "bench": ("bench", "measure the kernels against other implementations on this machine"),
    "compare": ("analysis", "CKA between the layers of one or two models, over a data set"),
    "tune": ("tuning", "measure what the choice of algorithm depends on, and keep it"),
}
_INFO_HELP = "what this installation can do, and why not more"
_INTERRUPTED = 130  # the exit status of a program that Ctrl-C stopped


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, without the usage text before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _build_parser(command: str | None) -> argparse.ArgumentParser:
    # Only the command in use is imported, so that `sparsekern info` does not wait for the others.
    parser = _Parser(
        prog="sparsekern",
        description="Fast similarity analysis and sparse training for PyTorch.",
    )
    parser.add_argument("--version", action="version", version=f"sparsekern {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    commands.add_parser("info", help=_INFO_HELP, description=_INFO_HELP)
    for name, (folder, summary) in _COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if name == command:
            module = importlib.import_module(f".{folder}.command", __package__)
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; without one, prints what ``sparsekern info`` does and a hint.

    Args:
        argv: the arguments after the program's name; ``sys.argv[1:]`` if None.

    Returns:
        The exit status: 0; 2 for arguments that make no sense, an environment that asks for what
        is not there, or a file that cannot be read or written, told in one line on stderr; 130
        after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding without µ or ± is no reason to stop
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((argument for argument in arguments if argument in _COMMANDS), None)
    parsed = _build_parser(command).parse_args(arguments)
    try:
        if parsed.command in (None, "info"):
            _print_info(parsed.command is None)
            return 0
        _check_environment()
        status: int = parsed.run(parsed)
        sys.stdout.flush()  # what reads it may have gone: that is told here and not at the exit
    except BrokenPipeError:  # as after `sparsekern bench | head`: nobody is left to tell anything
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"sparsekern {parsed.command}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"sparsekern {parsed.command}: error: {message}", file=sys.stderr)
        return 2
    return status


def _print_info(hint: bool) -> None:
    from .info import info

    print(info())
    if hint:
        print(f"\nusage: sparsekern {' | '.join(('info', *_COMMANDS))}   (--help tells more)")
    sys.stdout.flush()


def _check_environment() -> None:
    """Refuses a SPARSEKERN_BACKEND or SPARSEKERN_ISA that nothing here can satisfy.

    Raises:
        ValueError: with the reason.
    """
    from . import dispatch, native

    name = dispatch.requested()
    try:
        native.cpu_missing_reason()
        reason = dispatch.missing_reason(name)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if reason:
        raise ValueError(f"SPARSEKERN_BACKEND asks for {name}, which is not available: {reason}")
