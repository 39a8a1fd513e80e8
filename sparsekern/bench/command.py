"""``sparsekern bench``: arguments, and what is printed and written."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from .case import AnyCase
    from .results import Results
    from .settings import Settings

_INTERRUPTED = 130  # the exit status of what Ctrl-C ended, as shells have it


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sparsekern bench``."""
    parser.add_argument("--suite", help="suites, e.g. similarity,masked (default: all)")
    parser.add_argument("--case", help="cases by the beginning of their ids, e.g. S1,scale-n")
    parser.add_argument(
        "--backend",
        default="auto",
        help="what sparsekern runs on: auto, reference, cpu, triton or cuda",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="float32, float64, bfloat16, float16, or several with commas: a run for each",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--list", action="store_true", help="measure nothing: list the cases")
    parser.add_argument(
        "--missing",
        action="store_true",
        help="of these cases those that --out lacks, or lacks a row of (--memory only: memory)",
    )
    parser.add_argument(
        "--older-than",
        metavar="REF",
        help="of these cases those that --out has from before a commit (with --missing: both)",
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, under two minutes")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="for the timing of one case, beyond the least rounds (default: 10; 2 with --quick)",
    )
    parser.add_argument(
        "--memory",
        default="with",
        help="peak memory: with the times (not with --quick), without, or only: added to --out",
    )
    parser.add_argument("--compare", help="baselines to keep, e.g. eager,torch_cka (default: all)")
    parser.add_argument("--threads", type=int, help="threads (default: those torch would use)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the results as JSON there")
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="draw the results there; with --results, those of a folder and measure nothing",
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="run the cases of a results file again; exit status 1 if ratios have become worse",
    )
    parser.add_argument(
        "--base",
        metavar="REF",
        help="compare with another commit, built aside; exit status 1 if something became slower",
    )
    parser.add_argument(
        "--bound",
        type=float,
        default=0.5,
        help="the share of a committed ratio that --check still accepts (default: 0.5)",
    )
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
        metavar="DIR",
        help="where --report finds results (default: benchmarks/results)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs ``sparsekern bench``.

    Returns:
        The exit status: 1 if a result of sparsekern was wrong, or with ``--check`` or
        ``--base`` became slower; 130 if Ctrl-C ended it.

    Raises:
        ValueError: for arguments that make no sense, in one line.
    """
    if arguments.report:
        return _report(arguments.report, arguments.results or Path("benchmarks/results"))
    if arguments.plots and arguments.results:
        return _plot_folder(arguments.results, arguments.plots)
    if (arguments.missing or arguments.older_than) and not arguments.out:
        raise ValueError("--missing and --older-than look at what --out holds: give it too")
    if arguments.list:
        return _list(arguments)
    if arguments.check:
        return _check(arguments)
    if arguments.base:
        return _base(arguments)
    return _bench(arguments)


def _report(files: list[Path], folder: Path) -> int:
    from . import report

    committed = report.committed(folder)
    for path in files:
        report.fill_file(path, committed)
        print(f"filled {path} from {folder}")
    return 0


def _plot_folder(folder: Path, target: Path) -> int:
    from . import report, results

    if not results.load_folder(folder):
        raise ValueError(f"--results: {folder} holds no results")
    for one in report.committed(folder):
        _plot(one, target)
    return 0


def _plot(measured: Results, folder: Path) -> None:
    try:
        from . import plots
    except ImportError as error:
        raise ValueError(
            f"--plots needs matplotlib (pip install sparsekern[plots]): {error}"
        ) from None
    for path in plots.draw(measured, folder):
        print(f"drew {path}")


def _chosen(arguments: argparse.Namespace, quick: bool | None = None) -> list[AnyCase]:
    from . import cases

    names = arguments.case.split(",") if arguments.case else None
    return cases.select(arguments.suite, names, arguments.quick if quick is None else quick)


def _list(arguments: argparse.Namespace) -> int:
    chosen = _chosen(arguments)
    says = {case.id: f"{case.suite}: {case.title}" for case in chosen}
    if arguments.missing or arguments.older_than:
        says = {
            case_id: reason
            for settings in _settings(arguments)
            for case_id, reason in _unfinished(chosen, settings, arguments).items()
        }
    width = max(map(len, says), default=0)
    for case_id, text in says.items():
        print(f"{case_id:{width}}  {text}")
    return 0


def _held(settings: Settings, out: Path) -> Results | None:
    from . import machine, results

    return results.load_same(out, machine.describe(), settings.described)


def _unfinished(
    chosen: list[AnyCase], settings: Settings, arguments: argparse.Namespace
) -> dict[str, str]:
    """Which of these cases --missing and --older-than choose, and why."""
    from . import unfinished

    fitting = [case for case in chosen if settings.dtype in case.dtypes]
    held = _held(settings, arguments.out)
    return unfinished.reasons(fitting, held, settings, arguments.missing, arguments.older_than)


def _check(arguments: argparse.Namespace) -> int:
    from . import check

    if not 0 < arguments.bound <= 1:
        raise ValueError(f"--bound must be above 0 and at most 1, got {arguments.bound:g}")
    backend = _checked_backend(arguments.backend)

    def chosen(quick: bool) -> list[AnyCase]:
        return _chosen(arguments, quick)

    outcome = check.check(arguments.check, chosen, backend, arguments.bound, _say)
    for notice in outcome.notices:
        print(f"note: {notice}")
    for wrong in outcome.wrong:
        print(f"WRONG  {wrong}")
    shown = [f for f in outcome.findings if f.is_worse] or outcome.findings[:5]
    for finding in shown:
        print(
            f"{'WORSE' if finding.is_worse else 'lowest'}  {finding.case}, {finding.baseline} "
            f"over sparsekern: {finding.committed:.3g} committed, {finding.measured:.3g} now "
            f"({100 * finding.measured / finding.committed:.0f}%)"
        )
    worse = sum(finding.is_worse for finding in outcome.findings)
    print(
        f"{len(outcome.findings)} ratios compared, {worse} worse than {100 * arguments.bound:g}% "
        f"of the committed ones each time; {len(outcome.wrong)} wrong results"
    )
    return 0 if outcome.is_good else 1


def _say(text: str) -> None:
    print(text, flush=True)  # seen at once, in a file or a pipe too


def _base(arguments: argparse.Namespace) -> int:
    from . import base, table
    from .case import Case

    settings, *more = _settings(arguments)
    if more:
        raise ValueError(f"--base compares in one --dtype, got {arguments.dtype!r}")
    if settings.device != "cpu":
        raise ValueError(f"--base compares on the CPU only, got --device {settings.device}")
    chosen = [case for case in _chosen(arguments) if settings.dtype in case.dtypes]
    names = [case.id for case in chosen if isinstance(case, Case)]
    width = max((len(name) for name in names), default=0)
    is_good = True
    for moved in base.compare(arguments.base, names, settings, _say):
        is_good &= not moved.is_broken and moved.verdict != "slower"
        numbers = (
            ""
            if moved.problem
            else (
                f"{table.time_text(moved.seconds):>8}, {arguments.base} / here {moved.ratio:.3f} "
                f"({moved.low:.3f} … {moved.high:.3f})  "
            )
        )
        print(f"{moved.case:{width}}  {numbers}{moved.verdict}", flush=True)
    margin = f"{100 * base.MARGIN:.0f}%"
    print(f"moved: the 99% interval of the median ratio lies wholly beyond {margin} from 1")
    return 0 if is_good else 1


def _bench(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from . import table

    chosen = _chosen(arguments)
    console = Console(width=table.WIDTH, markup=False)
    is_right = True
    try:
        for settings in _settings(arguments):
            fitting = [case for case in chosen if settings.dtype in case.dtypes]
            others = [case.id for case in chosen if settings.dtype not in case.dtypes]
            if others:
                console.print(f"not in {settings.dtype}: {', '.join(others)}", highlight=False)
            if arguments.missing or arguments.older_than:
                reasons = _unfinished(fitting, settings, arguments)
                fitting = [case for case in fitting if case.id in reasons]
                console.print(f"{len(fitting)} cases are left to measure in {settings.dtype}")
            if fitting:
                is_right &= _run(console, fitting, settings, arguments)
    except KeyboardInterrupt:
        kept = f": {arguments.out} has all cases before; --missing goes on" if arguments.out else ""
        console.print(f"interrupted{kept}", highlight=False)
        return _INTERRUPTED
    return 0 if is_right else 1


def _run(
    console: Console, chosen: list[AnyCase], settings: Settings, arguments: argparse.Namespace
) -> bool:
    """Runs and prints one set of settings; whether all of sparsekern's results were right."""
    from . import cases, results, runner, table, unfinished

    out: Path | None = arguments.out
    state = {"first": True}
    only_memory = settings.memory == "only"
    replace = "memory" if only_memory else "cases" if settings.compare is None else "rows"
    held = None if out is None else _held(settings, out)  # of another machine: told at once
    progress = unfinished.Progress([case.id for case in chosen])
    if held is not None and not only_memory:
        progress.known |= {case.id: case.took for case in held.cases if case.took}

    def show(case: results.CaseResult, so_far: results.Results) -> None:
        if only_memory:
            table.print_memory(console, case)
        elif state.pop("first", False):
            console.print(table.heading(so_far), highlight=False)
            console.print()
        if not only_memory:
            table.print_case(console, case)
        if out:
            alone = dataclasses.replace(so_far, cases=[case])
            results.save(alone, out, cases.case_order(), replace)
        if len(chosen) > 1:
            console.print(f"{progress.add(case)}\n", style="dim", highlight=False)

    measured = runner.run(chosen, settings, show)
    if out:
        console.print(f"results in {out / measured.file_name}", highlight=False)
    if arguments.plots:
        _plot(measured, arguments.plots)
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
            device=_checked_device(arguments.device),
            budget=_checked_budget(arguments.budget),
            memory=_one_of("--memory", arguments.memory, ("with", "without", "only")),
        )
        for dtype in dtypes
    ]


def _checked_budget(budget: float | None) -> float | None:
    if budget is not None and not budget > 0:
        raise ValueError(f"--budget must be above 0 seconds, got {budget:g}")
    return budget


def _one_of(argument: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _checked_device(name: str) -> str:
    import torch

    if _one_of("--device", name, ("cpu", "cuda")) == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU that it can use here")
    return name


def _checked_backend(name: str) -> str:
    from .. import dispatch

    _one_of("--backend", name, ("auto", *dispatch.BACKENDS))
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
