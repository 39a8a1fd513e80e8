"""``sparsekern bench``: arguments, and what is printed and written."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sparsekern bench``."""
    parser.add_argument("--suite", help="e.g. similarity,regularizers (default: all)")
    parser.add_argument("--case", help="cases by the beginning of their ids, e.g. S1,scale-n")
    parser.add_argument(
        "--backend", default="auto", help="what sparsekern runs on: auto, cpu or reference"
    )
    parser.add_argument(
        "--dtype", default="float32", help="float32, float64, bfloat16 or float16 features"
    )
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
    return _bench(arguments)


def _report(files: list[Path], folder: Path) -> int:
    from . import report

    committed = report.committed(folder)
    for path in files:
        report.fill_file(path, committed)
        print(f"filled {path} from {folder}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    import torch
    from rich.console import Console

    from . import cases, results, runner, table
    from .case import DTYPES
    from .settings import Settings

    settings = Settings(
        backend=_checked_backend(arguments.backend),
        dtype=_one_of("--dtype", arguments.dtype, DTYPES),
        threads=_checked_threads(arguments.threads, torch.get_num_threads()),
        quick=arguments.quick,
        compare=cases.compare_names(arguments.compare),
    )
    names = arguments.case.split(",") if arguments.case else None
    chosen = cases.select(arguments.suite, names, arguments.quick)
    console = Console(width=table.WIDTH)
    state = {"first": True}

    def show(case: results.CaseResult, so_far: results.Results) -> None:
        if state.pop("first", False):
            console.print(table.heading(so_far), highlight=False)
            console.print()
        table.print_case(console, case)
        if arguments.out:
            results.save(so_far, arguments.out, cases.case_order())

    measured = runner.run(chosen, settings, show)
    if arguments.out:
        console.print(f"results in {arguments.out / measured.file_name}", highlight=False)
    return 1 if any(case.rows[0].status != "ok" for case in measured.cases) else 0


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
