"""Heat maps of CKA, readable from 5 to 200 layers."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import CKAResult

_MOST_LABELS = 45  # along an axis; with more, every second, third, ... is written
_MOST_VALUES = 14  # layers up to which values are written into the cells
_LONGEST = 28  # characters of a label
_DEEPEST = 4  # parts of a name by which layers are put into blocks
_TITLE = 11  # points
_PERCEPTUAL, _DIVERGING = "viridis", "RdBu_r"


def heat_map(
    result: CKAResult,
    axes: Axes | None = None,
    *,
    colours: str | None = None,
    limits: tuple[float, float] | None = None,
    values: bool | None = None,
    boundaries: bool = True,
    title: str | None = None,
) -> Axes:
    """Draws a CKA matrix, the first layer at the lower left.

    Args:
        result: what to draw.
        axes: to draw on; None for a figure of its own, as large as the number of layers asks for.
        colours: a colour map of matplotlib; None for a perceptual one.
        limits: values of the first and last colour; None for 0 and 1, and below 0 where the matrix
            is (by less than chance alone gives it is left at 0).
        values: whether to write values into the cells; None for yes where there is room.
        boundaries: draws lines where the first parts of the layers' names change (blocks).
        title: above the picture; None for what was compared and how.

    Returns:
        The axes; ``axes.figure.savefig(path)`` keeps the picture.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    matrix = result.numpy()
    if limits is None:
        slack = 3 * result.chance if result.chance == result.chance else 0.0
        lowest = float(matrix.min())
        limits = (lowest if lowest < -slack else 0.0, max(1.0, float(matrix.max())))
    heading = title if title is not None else f"{result.title}\n{result.description}"
    return _draw(
        matrix,
        result,
        axes,
        colours or _PERCEPTUAL,
        limits,
        values,
        boundaries,
        heading,
        f"{result.estimator} CKA",
    )


def difference_map(
    result: CKAResult,
    other: CKAResult,
    axes: Axes | None = None,
    *,
    colours: str | None = None,
    limit: float | None = None,
    values: bool | None = None,
    boundaries: bool = True,
    title: str | None = None,
) -> Axes:
    """Draws ``result - other`` on colours that diverge from 0.

    Args:
        result: the first.
        other: subtracted from it; layers are matched by position, names are those of ``result``.
        axes: as in :func:`heat_map`.
        colours: a diverging colour map of matplotlib.
        limit: the largest difference that has a colour of its own; None for what occurs.
        values: as in :func:`heat_map`.
        boundaries: as in :func:`heat_map`.
        title: as in :func:`heat_map`.

    Raises:
        ValueError: if the matrices differ in size.
    """
    if result.matrix.shape != other.matrix.shape:
        raise ValueError(
            f"the results have {tuple(result.matrix.shape)} and {tuple(other.matrix.shape)} "
            "layers: a difference needs the same number"
        )
    matrix = result.numpy() - other.numpy()
    bound = limit if limit is not None else max(float(np.abs(matrix).max()), 1e-6)
    heading = title if title is not None else f"({result.title}) - ({other.title})"
    return _draw(
        matrix,
        result,
        axes,
        colours or _DIVERGING,
        (-bound, bound),
        values,
        boundaries,
        heading,
        "difference of CKA",
    )


def _draw(
    matrix: np.ndarray[Any, np.dtype[np.float64]],
    result: CKAResult,
    axes: Axes | None,
    colours: str,
    limits: tuple[float, float],
    values: bool | None,
    boundaries: bool,
    title: str,
    scale: str,
) -> Axes:
    rows, columns = matrix.shape
    if axes is None:
        axes = _new_axes(rows, columns)
    image = axes.imshow(
        matrix,
        origin="lower",
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        aspect="equal",
    )
    _label(axes, result)
    size = _font_size(max(rows, columns))
    line = "white" if limits[0] > -limits[1] else "0.25"  # a diverging map is white in the middle
    if boundaries:
        for start in _boundaries(result.rows):
            axes.axhline(start - 0.5, color=line, linewidth=0.8)
        for start in _boundaries(result.columns):
            axes.axvline(start - 0.5, color=line, linewidth=0.8)
    if values or (values is None and max(rows, columns) <= _MOST_VALUES):
        _write_values(axes, image, matrix, size)
    axes.set_title(_wrapped(title, axes), fontsize=_TITLE)
    axes.figure.colorbar(image, ax=axes, label=scale, fraction=0.046, pad=0.03)
    return axes


def _new_axes(rows: int, columns: int) -> Axes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # No global state: a figure of its own, that a notebook shows and nobody has to close.
    width = min(16.0, max(5.5, 2.6 + 0.3 * min(columns, _MOST_LABELS)))
    height = min(14.0, max(4.8, 2.2 + 0.28 * min(rows, _MOST_LABELS)))
    # The layout is made before the colour bar has its ticks: room for what they take.
    layout = ConstrainedLayoutEngine(w_pad=0.2)
    figure = Figure(figsize=(width, height), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _label(axes: Axes, result: CKAResult) -> None:
    for names, axis, what in (
        (result.columns, axes.xaxis, result.models[1]),
        (result.rows, axes.yaxis, result.models[0]),
    ):
        step = -(-len(names) // _MOST_LABELS)
        at = range(0, len(names), step)
        axis.set_ticks(list(at), [_shortened(names[i]) for i in at])
        axis.set_label_text(what + (f" (every {_ordinal(step)} layer named)" if step > 1 else ""))
    size = _font_size(max(len(result.rows), len(result.columns)))
    longest = max(map(len, result.columns))
    turned = longest > 3 or len(result.columns) > 12
    axes.tick_params(axis="x", labelrotation=90 if turned else 0, labelsize=size)
    axes.tick_params(axis="y", labelsize=size)


def _wrapped(title: str, axes: Axes) -> str:
    """The title in lines that fit over the axes: a letter is about 0.55 of its size wide."""
    width = axes.bbox.width * 72 / axes.figure.dpi  # points
    letters = max(20, int(1.15 * width / (0.55 * _TITLE)))  # labels beside the axes leave room
    return "\n".join(
        part for line in title.split("\n") for part in textwrap.wrap(line, letters) or [""]
    )


def _ordinal(step: int) -> str:
    return {2: "second", 3: "third"}.get(step, f"{step}th")


def _font_size(layers: int) -> float:
    return 9.0 if layers <= 24 else 7.0


def _shortened(name: str) -> str:
    """A long name by its end, which tells neighbours apart."""
    if len(name) <= _LONGEST:
        return name
    tail = name[-_LONGEST:]
    return "…" + (tail[tail.index(".") + 1 :] if "." in tail else tail[1:])


def _boundaries(names: Sequence[str]) -> list[int]:
    """Where blocks begin: where the first parts of the names change, as few as tell blocks apart.

    Layers that share their first parts with no other one are not parted from each other.
    """
    for depth in range(1, _DEEPEST + 1):
        heads = [".".join(name.split(".")[:depth]) for name in names]
        counts = Counter(heads)
        if sum(count > 1 for count in counts.values()) < 2:
            continue  # all in one block, or no blocks, at this depth
        starts = [
            i
            for i in range(1, len(names))
            if heads[i] != heads[i - 1] and counts[heads[i]] + counts[heads[i - 1]] > 2
        ]
        return starts if len(starts) <= max(2, len(names) // 2) else []
    return []


def _write_values(
    axes: Axes, image: Any, matrix: np.ndarray[Any, np.dtype[np.float64]], size: float
) -> None:
    for row, column in np.ndindex(*matrix.shape):
        red, green, blue, _ = image.cmap(image.norm(matrix[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(
            column,
            row,
            f"{round(matrix[row, column], 2) + 0.0:.2f}",  # no "-0.00"
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontsize=min(size, 110 / max(matrix.shape) ** 1.05),
        )
