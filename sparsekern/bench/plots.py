"""The pictures of a results file: ratios, curves over sizes, threads or sparsity, the roofline."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import pictures
from .case import OURS
from .results import CaseResult, Results, Row

_DPI = 110
_OURS_COLOUR = "#cc3311"
# Told apart by every kind of colour vision (Paul Tol); markers tell the rest.
_COLOURS = (
    "#4477aa",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#888888",
    "#222255",
    "#ee99aa",
    "#44bb99",
    "#aa7744",
    "#0b775e",
    "#bb5566",
)
_SHADES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.0)
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")
_Look: TypeAlias = dict[str, Any]


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws what there are results for.

    Args:
        results: of one run or file.
        folder: made if it is not there; files of the same names are replaced.

    Returns:
        The paths of the pictures, named after the results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    about = PngInfo()
    about.add_text("Source", pictures.digest(results))

    def save(figure: Figure, name: str) -> None:
        path = folder / pictures.file_name(results, name)
        image = Image.fromarray(_pixels(FigureCanvasAgg(figure))).convert("RGB")
        # Lines and letters need few colours: a third of the bytes.
        few = image.quantize(palette=_palette(), dither=Image.Dither.NONE)
        few.save(path, pnginfo=about, optimize=True)
        paths.append(path)

    for suite in dict.fromkeys(case.suite for case in results.cases):
        cases = [case for case in results.cases if case.suite == suite]
        if shown := pictures.ratio_cases(cases):
            save(_ratios(results, suite, shown), f"{suite}-ratios")
        for name, families in pictures.curve_families(suite, cases).items():
            save(_curves(results, name, families), name)
    if results.floor and (points := pictures.roofline_cases(results)):
        save(_roofline(results, points), "roofline")
    return paths


@functools.cache
def _palette() -> Image.Image:
    """Every colour in use and its way to white; chosen from the pixels, rare ones would merge."""
    values = []
    for colour in ("#000000", _OURS_COLOUR, *_COLOURS):
        for share in _SHADES:
            channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
            values += [round(255 - share * (255 - channel)) for channel in channels]
    palette = Image.new("P", (1, 1))
    palette.putpalette(values)
    return palette


def _pixels(canvas: Any) -> Any:
    canvas.draw()  # neither this nor the buffer is annotated by matplotlib
    return np.asarray(canvas.buffer_rgba())


def _looks(cases: Sequence[CaseResult]) -> dict[str, _Look]:
    """The colour and marker of each contender in one picture."""
    names = dict.fromkeys(row.name for case in cases for row in case.rows)
    looks: dict[str, _Look] = {OURS: {"color": _OURS_COLOUR, "marker": "o"}}
    for index, name in enumerate(name for name in names if name != OURS):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        looks[name] = {"color": colour, "marker": marker}
    return looks


def _setting(results: Results) -> str:
    settings, machine = results.settings, results.machine
    return (
        f"{machine['processor']}, {settings['threads']} threads, ISA {machine['isa']}, "
        f"{settings['dtype']}{', quick shapes' if settings['quick'] else ''}"
    )


def _figure(width: float, height: float, title: str, results: Results) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    figure.suptitle(f"{title}\n{_setting(results)}", fontsize=10)
    return figure


def _ratios(results: Results, suite: str, shown: Sequence[CaseResult]) -> Figure:
    """How many times sparsekern's time each contender takes, a line per case."""
    looks = _looks(shown)
    figure = _figure(9, 1.6 + 0.36 * len(shown), f"{suite}: time over sparsekern's", results)
    axes = figure.add_subplot()
    seen: set[str] = set()
    for line, case in enumerate(shown):
        for index, row in enumerate(case.rows):
            ratio = case.ratio(row)
            if ratio is not None:
                legend = row.label if row.name not in seen else None
                seen.add(row.name)
                height = line + 0.1 * (index % 5 - 2)  # equal ratios stay apart
                look = looks[row.name]
                axes.plot(ratio, height, linestyle="", markersize=6, label=legend, **look)
    axes.axvline(1, color=_OURS_COLOUR, linewidth=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_ticks(*axes.get_xlim()))
    axes.set_yticks(range(len(shown)), [f"{case.id}\n{case.shapes}" for case in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="both", alpha=0.3)
    axes.set_xlabel("right of the line sparsekern is faster")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """1, 10, 100 …, with 2 and 5 between them below three decades, and more below one."""
    span = high / low
    digits = (1,) if span > 1e3 else (1, 2, 5) if span > 8 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def _curves(results: Results, title: str, families: dict[str, list[CaseResult]]) -> Figure:
    """Time along each series: a panel per family, with the predicted order and the floor."""
    looks = _looks([case for points in families.values() for case in points])
    columns = min(2 if len(families) < 5 else 3, len(families))
    rows = -(-len(families) // columns)
    title = title.replace("-curves", "").replace("-", ", ")
    figure = _figure((7.5, 10, 12)[columns - 1], 1.5 + 2.9 * rows, f"{title}: time", results)
    for place, (name, points) in enumerate(families.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        _panel(axes, name, sorted(points, key=_x), looks)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    lines, labels = list(handles.values()), list(handles)
    figure.legend(lines, labels, loc="outside lower center", ncols=2 + columns, fontsize=8)
    return figure


def _x(case: CaseResult) -> float:
    assert case.series is not None
    return float(case.series["x"])


def _panel(axes: Axes, name: str, points: Sequence[CaseResult], looks: dict[str, _Look]) -> None:
    series = points[0].series
    assert series is not None
    xs = [_x(case) for case in points]
    is_sparsity = series["x_name"] == "sparsity"
    # Sparsities crowd towards 1: what is kept, on a logarithmic axis, spreads them out.
    place = [1 - x for x in xs] if is_sparsity else xs
    at = dict(zip((case.id for case in points), place, strict=True))
    for contender in dict.fromkeys(row.name for case in points for row in case.rows):
        pairs = [
            (at[case.id], 1e3 * row.seconds, row.label)
            for case in points
            if (row := case.row(contender)) is not None and _counts(row) and row.seconds
        ]
        if pairs:
            width = 2.2 if contender == OURS else 1.2
            axes.plot(
                [x for x, _, _ in pairs],
                [y for _, y, _ in pairs],
                label=pairs[0][2],
                linewidth=width,
                markersize=4.5,
                zorder=3 if contender == OURS else 2,
                **looks[contender],
            )
    axes.set_xscale("log", base=2 if not is_sparsity else 10)
    axes.set_yscale("log")
    _floor(axes, points, place)
    limits = axes.get_ylim()
    _predicted(axes, points, place)
    axes.set_ylim(limits)  # a prediction far below all that was measured ends at the edge
    if is_sparsity:
        axes.invert_xaxis()
        axes.set_xlabel("sparsity")
    else:
        axes.set_xlabel(series["x_name"])
    axes.set_xticks(place, [f"{x:g}" for x in xs], fontsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([], minor=True)
    axes.set_yticks(_ticks(*axes.get_ylim()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("ms")
    order = f"\npredicted order: {series['order']}" if series["order"] else ""
    axes.set_title(name + order, fontsize=9)
    axes.grid(alpha=0.3)


def _counts(row: Row) -> bool:
    return row.status == "ok"


def _floor(axes: Axes, points: Sequence[CaseResult], place: Sequence[float]) -> None:
    floor = [
        (x, 1e3 * case.floor_seconds)
        for x, case in zip(place, points, strict=True)
        if case.floor_seconds
    ]
    if floor:
        axes.plot(*zip(*floor, strict=True), ":", color="black", linewidth=1.2, label="floor")


def _predicted(axes: Axes, points: Sequence[CaseResult], place: Sequence[float]) -> None:
    """The predicted order, through sparsekern's most expensive point."""
    predicted = [
        (x, float(case.series["predicted"]), case.rows[0].seconds)
        for x, case in zip(place, points, strict=True)
        if case.series is not None and case.series["predicted"] and case.rows[0].seconds
    ]
    if len(predicted) > 1:
        _, most, seconds = max(predicted, key=lambda point: point[1])
        scale = 1e3 * (seconds or 0.0) / most
        axes.plot(
            [x for x, _, _ in predicted],
            [scale * cost for _, cost, _ in predicted],
            "--",
            color=_OURS_COLOUR,
            linewidth=1,
            label="predicted order",
        )


def _roofline(results: Results, points: Sequence[CaseResult]) -> Figure:
    """Operations per second against operations per byte, under the two measured roofs."""
    figure = _figure(9, 5.6, "roofline: what the machine allows, and what is reached", results)
    axes = figure.add_subplot()
    intensity = [case.operations / case.bytes for case in points if case.operations and case.bytes]
    low, high = min(intensity) / 2, max(intensity) * 2
    flops, bandwidth = results.floor["flops"], results.floor["bandwidth"]
    ridge = flops / bandwidth
    corner = sorted({low, min(max(ridge, low), high), high})
    roof = [min(flops, bandwidth * x) / 1e9 for x in corner]
    axes.plot(corner, roof, color="black", linewidth=1.5, label="floor: bytes, then operations")
    # Points of curves are many, with others of their kind: a small mark each, and no name.
    curves = {_kind(case) for case in points if case.series is not None}
    kinds: dict[str, list[tuple[float, float]]] = {}
    for case, x in zip(points, intensity, strict=True):
        if _kind(case) in curves and (ours := _ours(case)):
            kinds.setdefault(_kind(case), []).append((x, _rate(case, ours)))
    for index, (kind, places) in enumerate(kinds.items()):
        look: _Look = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index]}
        axes.plot(
            [x for x, _ in places],
            [y for _, y in places],
            linestyle="",
            markersize=3.5,
            label=f"{OURS}, {kind}",
            alpha=0.8,
            **look,
        )
    alone = [(c, x) for c, x in zip(points, intensity, strict=True) if _kind(c) not in curves]
    for case, x in alone:
        rates = [_rate(case, row) for row in (_ours(case), _best_baseline(case)) if row]
        if len(rates) == 2:
            axes.plot([x, x], rates, color="#999999", linewidth=0.8, zorder=1)
    square: _Look = {"marker": "s", "color": "#4477aa", "fillstyle": "none"}
    dot: _Look = {"marker": "o", "color": _OURS_COLOUR}
    for choose, look, label in (
        (_best_baseline, square, "best baseline"),
        (_ours, dot, OURS),
    ):
        pairs = [(x, _rate(case, row)) for case, x in alone if (row := choose(case)) is not None]
        xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
        axes.plot(xs, ys, linestyle="", markersize=6, label=label, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_ticks(_ticks(least, most))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("10⁹ operations per second, symmetric products counted half")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    _name(axes, [(x, _rate(case, ours), case.id) for case, x in alone if (ours := _ours(case))])
    return figure


def _kind(case: CaseResult) -> str:
    return case.id.split("-")[0]


def _name(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes names beside points, clear of points and other names; none where there is no place."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # so that places on the axes are known
    places = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for x, y, name in points:
        for offset in ((8, -3), (-8, -3), (6, 6), (6, -12), (-6, 6), (-6, -12), (8, 14), (8, -22)):
            side = "left" if offset[0] > 0 else "right"
            text = axes.annotate(
                name, (x, y), xytext=offset, textcoords="offset points", fontsize=7, ha=side
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _rate(case: CaseResult, row: Row) -> float:
    """10⁹ operations per second."""
    assert case.operations
    assert row.seconds
    return case.operations / row.seconds / 1e9


def _ours(case: CaseResult) -> Row | None:
    return case.rows[0] if _counts(case.rows[0]) else None


def _best_baseline(case: CaseResult) -> Row | None:
    others = [row for row in case.rows if row.group != OURS and row.name != OURS]
    others = [row for row in others if _counts(row) and row.seconds]
    return min(others, key=lambda row: row.seconds or math.inf) if others else None
