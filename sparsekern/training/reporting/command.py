"""The command ``sparsekern report``: tables and pictures of the experiments in some folders."""

from __future__ import annotations

import argparse
import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .collect import Section

REPORT = "report.md"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``sparsekern report``."""
    parser.description = (
        "Compare finished runs of sparsekern train and sparsekern grid: means and paired "
        "differences over seeds, accuracy against sparsity, CKA, dead neurons, masks."
    )
    add = parser.add_argument
    add("directories", nargs="+", type=Path, metavar="DIR", help="searched for results, deeply")
    add("--out", type=Path, help="where report.md and pictures go (default: the first DIR)")
    add("--at", type=float, help="sparsity of the pictures of one (default: the best covered)")


def run(args: argparse.Namespace) -> int:
    """Writes the report, and prints its text.

    Raises:
        ValueError: one line that says which argument to change.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    for directory in args.directories:
        if not directory.is_dir():
            raise ValueError(f"{directory} is no directory: give one that holds results")
    text, paths = write_report(args.directories, args.out or args.directories[0], args.at)
    console = Console(markup=False)  # paths and messages may hold brackets
    console.print(Markdown(text) if console.is_terminal else text, soft_wrap=True, highlight=False)
    console.print("Written:")
    for path in paths:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    return 0


def write_report(
    directories: list[Path], out: Path, sparsity: float | None = None
) -> tuple[str, list[Path]]:
    """Writes ``report.md`` and its pictures.

    Args:
        directories: searched for results.
        out: made if it is missing.
        sparsity: of the pictures that show one; None: the one with the most configurations.

    Returns:
        The text, and the paths of what was written.

    Raises:
        ValueError: if there are no results, none with this sparsity, or no way to write.
    """
    from ..store import write_atomically
    from .collect import collect

    sections = collect(directories)
    known = sorted({value for section in sections for value in section.sparsities})
    if sparsity is not None and sparsity not in known:
        raise ValueError(f"--at must be one of {', '.join(map(str, known))}; got {sparsity}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made: {error.strerror}") from None
    parts, paths = ["# Report"], []
    for number, section in enumerate(sections):
        name = f"{section.data}-{section.model}" + (f"-{number}" if len(sections) > 1 else "")
        text, pictures = _section(section, out, name, sparsity)
        parts.append(text)
        paths += pictures
    text = "\n\n".join(parts) + "\n"
    write_atomically(out / REPORT, text.encode())
    return text, [out / REPORT, *paths]


def _section(
    section: Section, out: Path, name: str, sparsity: float | None
) -> tuple[str, list[Path]]:
    from . import tables

    parts = [f"## {section.title}", tables.seeds_and_time(section)]
    pictures = _pictures(section, out, name, sparsity)
    if pictures is None:
        parts.append("No pictures without matplotlib: `pip install 'sparsekern[plots]'`.")
    for measure, heading, factor, decimals in tables.MEASURES:
        if not any(section.values(c, measure) for c in section.runs):
            continue
        parts.append(f"### {heading[0].upper()}{heading[1:]}: mean ± std over seeds")
        parts.append(tables.results(section, measure, factor, decimals))
        differences = tables.paired_differences(section, measure, factor, decimals)
        if differences:
            parts.append(
                "Minus the plain method, paired by seed, mean ± standard error; bold: more than "
                "two of them from 0."
            )
            parts.append(differences)
    parts += [f"![{heading}]({path.name})" for heading, path in pictures or ()]
    return "\n\n".join(parts), [path for _, path in pictures or ()]


def _pictures(
    section: Section, out: Path, name: str, sparsity: float | None
) -> list[tuple[str, Path]] | None:
    if importlib.util.find_spec("matplotlib") is None:
        return None
    if not section.sparsities:
        return []
    from . import figures

    if sparsity is None or sparsity not in section.sparsities:
        counts = Counter(c.sparsity for c in section.runs if c.method != "dense")
        sparsity = max(sorted(counts), key=lambda value: counts[value])
    drawn = (
        ("Accuracy against sparsity", figures.draw_accuracy(section, out / f"{name}-accuracy.png")),
        (
            "CKA between blocks",
            figures.draw_similarity(section, sparsity, out / f"{name}-cka.png"),
        ),
        (
            "Dead neurons during training",
            figures.draw_dead_neurons(section, sparsity, out / f"{name}-dead-neurons.png"),
        ),
        (
            "What masks keep of each layer",
            figures.draw_layers(section, sparsity, out / f"{name}-layers.png"),
        ),
    )
    return [(heading, path) for heading, path in drawn if path is not None]
