"""``sparsekern bench``: arguments, and what is printed and written."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from .case import AnyCase
    from .settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sparsekern bench``."""
    parser.add_argument("--suite", help="suites, e.g. similarity,masked (default: all)")
    parser.add_argument("--case", help="cases by the beginning of their ids, e.g. S1,scale-n")
    parser.add_argument(
        "--backend", default="auto", help="what sparsekern runs on: auto, cpu or reference"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="float32, float64, bfloat16, float16, or several with commas: a run for each",
    )
    parser.add_argument("--list", action="store_true", help="measure nothing: list the cases")
    parser.add_argument("--quick", action="store_true", help="small shapes, under two minutes")
    parser.add_argument("--compare", help="baselines to keep, e.g. eager,torch_cka (default: all)")
    parser.add_argument("--threads", type=int, help="threads (default: those torch would use)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the results as JSON there")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: fill the marked tables of these Markdown files from the results",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results"),
        metavar="DIR",
        help="where --report finds results (default: benchmarks/results)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs ``sparsekern bench``; returns the exit status: 1 if a result of ours was wrong.

    Raises:
        ValueError: for arguments that make no sense, in one line.
    """
    if arguments.report:
        return _report(arguments.report, arguments.results)
    if arguments.list:
        return _list(arguments)
    return _bench(arguments)


def _report(files: list[Path], folder: Path) -> int:
    from . import report

    committed = report.committed(folder)
    for path in files:
        report.fill_file(path, committed)
        print(f"filled {path} from {folder}")
    return 0


def _chosen(arguments: argparse.Namespace) -> list[AnyCase]:
    from . import cases

    names = arguments.case.split(",") if arguments.case else None
    return cases.select(arguments.suite, names, arguments.quick)


def _list(arguments: argparse.Namespace) -> int:
    chosen = _chosen(arguments)
    width = max(len(case.id) for case in chosen)
    for case in chosen:
        print(f"{case.id:{width}}  {case.suite}: {case.title}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from . import table

    chosen = _chosen(arguments)
    console = Console(width=table.WIDTH)
    is_right = True
    for settings in _settings(arguments):
        fitting = [case for case in chosen if settings.dtype in case.dtypes]
        others = [case.id for case in chosen if settings.dtype not in case.dtypes]
        if others:
            console.print(f"not in {settings.dtype}: {', '.join(others)}", highlight=False)
        if fitting:
            is_right &= _run(console, fitting, settings, arguments.out)
    return 0 if is_right else 1


def _run(console: Console, chosen: list[AnyCase], settings: Settings, out: Path | None) -> bool:
    """Runs and prints one set of settings; whether all of sparsekern's results were right."""
    from . import cases, results, runner, table

    state = {"first": True}

    def show(case: results.CaseResult, so_far: results.Results) -> None:
        if state.pop("first", False):
            console.print(table.heading(so_far), highlight=False)
            console.print()
        table.print_case(console, case)
        if out:
            results.save(so_far, out, cases.case_order())

    measured = runner.run(chosen, settings, show)
    if out:
        console.print(f"results in {out / measured.file_name}", highlight=False)
    return all(case.rows[0].status == "ok" for case in measured.cases)


def _settings(arguments: argparse.Namespace) -> list[Settings]:
    """One for each dtype, all checked before anything runs."""
    import torch

    from . import cases
    from .case import DTYPES
    from .settings import Settings

    dtypes = [name.strip() for name in arguments.dtype.split(",")]
    return [
        Settings(
            backend=_checked_backend(arguments.backend),
            dtype=_one_of("--dtype", dtype, DTYPES),
            threads=_checked_threads(arguments.threads, torch.get_num_threads()),
            quick=arguments.quick,
            compare=cases.compare_names(arguments.compare),
        )
        for dtype in dtypes
    ]


def _one_of(argument: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _checked_backend(name: str) -> str:
    from .. import dispatch

    _one_of("--backend", name, ("auto", "cpu", "reference"))
    reason = dispatch.missing_reason(name)
    if reason:
        raise ValueError(f"--backend {name} is not available: {reason}")
    return name


def _checked_threads(threads: int | None, default: int) -> int:
    if threads is None:
        return default
    most = os.cpu_count() or 1
    if not 1 <= threads <= most:
        raise ValueError(f"--threads must be between 1 and {most} here, got {threads}")
    return threads
