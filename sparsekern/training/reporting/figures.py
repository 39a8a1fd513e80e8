"""The pictures of a report: accuracy against sparsity, CKA, dead neurons, layers' masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from ..settings import NONE
from .collect import METHOD_LABELS, Configuration, Section, variant_order

_DPI = 110
# Paul Tol's "bright" and "muted": told apart by every kind of colour vision, with the markers.
_COLOURS = {
    "rst": "#4477aa",
    "gmp": "#ee6677",
    "lth": "#228833",
    "set": "#ccbb44",
    "rigl": "#66ccee",
    "grasp": "#aa3377",
    "snip": "#999933",
    "art": "#332288",
    "optg": "#cc6611",
    "dense": "#777777",
}
_MARKERS = dict(zip(_COLOURS, "osD^vP*Xh.", strict=True))
_VARIANT_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
_DEAD_LABELS = {"dynamic": "dynamically dead, share", "static": "statically dead, share"}
_ACCURACIES = (0, 10, 20, 40, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.5, 99.9, 100)


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI)
    return path


def draw_accuracy(section: Section, path: Path) -> Path:
    """Accuracy against sparsity: a panel for each variant, a line for each method.

    Means over seeds with their standard deviation, on an axis that gives errors of one and of
    ten percent room alike; dense training is the grey line.
    """
    variants = _variants(section)
    figure = Figure(figsize=(1.9 + 4.1 * len(variants), 4.6), layout="constrained")
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    sparsities = section.sparsities
    methods = list(dict.fromkeys(c.method for c in section.ordered(section.runs)))
    drawn: list[float] = []
    for axes, variant in zip(panels, variants, strict=True):
        for index, method in enumerate(m for m in methods if m != "dense"):
            offset = (index - (len(methods) - 2) / 2) * 0.055  # error bars stand side by side
            drawn += _draw_method(axes, section, method, variant, sparsities, offset)
        _draw_dense(axes, section, drawn)
        axes.set_title(variant, fontsize=11)
        axes.set_xticks(range(len(sparsities)), [f"{sparsity:g}" for sparsity in sparsities])
        axes.set_xlim(-0.5, len(sparsities) - 0.5)
        axes.set_xlabel("sparsity")
        axes.grid(axis="y", alpha=0.3)
    if drawn:
        _accuracy_axis(panels[0], min(drawn), max(drawn))
    panels[0].set_ylabel(f"{section.held_out} accuracy, %")
    handles, labels = _legend_of(panels)
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    seeds = max(len(runs) for runs in section.runs.values())
    figure.suptitle(f"{section.title}: mean ± std over {seeds} seed(s)", fontsize=12)
    return save(figure, path)


def _draw_method(
    axes: Axes,
    section: Section,
    method: str,
    variant: str,
    sparsities: Sequence[float],
    offset: float,
) -> list[float]:
    points = []
    for place, sparsity in enumerate(sparsities):
        for c in section.at(sparsity):
            if c.method == method and c.variant_name == variant:
                values = 100 * np.array(list(section.values(c, "accuracy").values()))
                points.append((place + offset, values.mean(), _std(values)))
    if not points:
        return []
    x, mean, std = (np.array(column) for column in zip(*points, strict=True))
    # A bar must not reach 100 %, where the axis ends.
    upper = np.minimum(std, np.maximum(0, 99.95 - mean))
    axes.errorbar(
        x,
        mean,
        [std, upper],
        color=_COLOURS[method],
        marker=_MARKERS[method],
        label=METHOD_LABELS[method],
        linewidth=1.4,
        elinewidth=0.8,
        capsize=2,
        markersize=5,
    )
    return [float(value) for value in mean]


def _draw_dense(axes: Axes, section: Section, drawn: list[float]) -> None:
    plain = [c for c in section.runs if c.method == "dense" and c.variant == NONE]
    if plain:
        accuracies = list(section.values(plain[0], "accuracy").values())
        mean = 100 * float(np.mean(accuracies))
        axes.axhline(mean, color=_COLOURS["dense"], linestyle="--", linewidth=1.2, label="dense")
        drawn.append(mean)


def _accuracy_axis(axes: Axes, lowest: float, highest: float) -> None:
    """The logarithm of the error, labelled with accuracies."""
    axes.set_yscale(
        "function",
        functions=(
            lambda y: -np.log10(np.maximum(100.5 - y, 1e-3)),
            lambda z: 100.5 - 10.0 ** (-z),
        ),
    )
    low = max(0.0, lowest - 0.15 * (100 - lowest) - 0.2)
    high = min(100.0, highest + 0.25 * (100 - highest) + 0.1)
    axes.set_ylim(low, high)
    ticks = [tick for tick in _ACCURACIES if low <= tick <= high]
    step = math.ceil(len(ticks) / 10)
    axes.yaxis.set_major_locator(FixedLocator(ticks[::step]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda y, _place: f"{y:g}")


def draw_similarity(section: Section, sparsity: float, path: Path) -> Path:
    """CKA between blocks, means over seeds: a row for each variant, a column for each method."""
    configurations = section.at(sparsity)
    methods = list(dict.fromkeys(c.method for c in configurations))
    variants = [
        name for name in _variants(section) if any(c.variant_name == name for c in configurations)
    ]
    maps = {
        (c.variant_name, c.method): np.mean(
            [run.result["cka"] for run in section.runs[c].values()], axis=0
        )
        for c in configurations
    }
    blocks = next(iter(section.runs[configurations[0]].values())).result["blocks"]
    lowest = math.floor(10 * min(float(values.min()) for values in maps.values())) / 10
    side = max(1.45, 0.3 * len(blocks))
    figure = Figure(
        figsize=(1.9 + (side + 0.15) * len(methods), 1.5 + (side + 0.25) * len(variants)),
        layout="constrained",
    )
    panels = figure.subplots(len(variants), len(methods), squeeze=False)
    image: Any = None
    for row, variant in enumerate(variants):
        for column, method in enumerate(methods):
            axes = panels[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(METHOD_LABELS[method], fontsize=11)
            if column == 0:
                axes.set_ylabel(_broken(variant), fontsize=10)
            if (variant, method) not in maps:
                axes.axis("off")
                continue
            values = maps[variant, method]
            image = axes.imshow(values, vmin=lowest, vmax=1, cmap="viridis")
            axes.set_xlabel(f"mean {_off_diagonal_mean(values):.2f}", fontsize=9)
            if len(blocks) <= 4:
                _write_values(axes, values, (1 + lowest) / 2)
    figure.colorbar(image, ax=panels, label="unbiased linear CKA", shrink=0.8, pad=0.01)
    gap = "\n" if len(methods) < 4 else " "
    figure.suptitle(
        f"{section.title} at sparsity {sparsity:g}:{gap}CKA between its {len(blocks)} blocks "
        f"({_block_name(blocks[0])} to {_block_name(blocks[-1])})",
        fontsize=12,
    )
    return save(figure, path)


def _block_name(name: str) -> str:
    return name.removeprefix("stage").removeprefix("layer")


def _off_diagonal_mean(values: NDArray[np.float64]) -> float:
    upper = np.triu_indices(len(values), 1)
    return float(values[upper].mean())


def _write_values(axes: Axes, values: NDArray[np.float64], threshold: float) -> None:
    for row, column in np.ndindex(values.shape):
        if row != column:
            shade = "black" if values[row, column] > threshold else "white"
            text = f"{values[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)


def draw_dead_neurons(section: Section, sparsity: float, path: Path) -> Path | None:
    """Dead-neuron rates by epoch: a column for each method, a colour for each variant.

    Dynamic and static rates have a row, and a scale, each: the latter are much the smaller.
    """
    configurations = [c for c in section.at(sparsity) if _dead_curves(section, c, "dynamic")]
    if not configurations:
        return None
    methods = list(dict.fromkeys(c.method for c in configurations))
    variants = [
        name for name in _variants(section) if any(c.variant_name == name for c in configurations)
    ]
    figure = Figure(figsize=(max(5.5, 1.9 + 1.75 * len(methods)), 4.8), layout="constrained")
    panels = figure.subplots(2, len(methods), sharex="col", sharey="row", squeeze=False)
    for row, kind in enumerate(("dynamic", "static")):
        for c in configurations:
            axes = panels[row, methods.index(c.method)]
            curves = np.array(_dead_curves(section, c, kind))
            axes.plot(
                np.arange(1, curves.shape[1] + 1),
                curves.mean(axis=0),
                color=_VARIANT_COLOURS[variants.index(c.variant_name) % len(_VARIANT_COLOURS)],
                linewidth=1.4,
                label=_broken(c.variant_name),
            )
        panels[row, 0].set_ylabel(_DEAD_LABELS[kind])
        for axes in panels[row]:
            axes.grid(alpha=0.3)
            axes.margins(x=0.03)
    for axes, method in zip(panels[0], methods, strict=True):
        axes.set_title(METHOD_LABELS[method], fontsize=11)
    for axes in panels[1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        top = max(0.01, axes.get_ylim()[1])
        axes.set_ylim(-0.04 * top, top)
    handles, labels = _legend_of(list(panels.flat))
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(
        f"{section.title} at sparsity {sparsity:g}: dead neurons during training", fontsize=12
    )
    return save(figure, path)


def _dead_curves(section: Section, configuration: Configuration, kind: str) -> list[list[float]]:
    """A curve for each seed, as long as the shortest."""
    curves = [
        [record["dead_neurons"][kind] for record in run.epochs if record.get("dead_neurons")]
        for run in section.runs[configuration].values()
    ]
    shortest = min(map(len, curves))
    return [curve[:shortest] for curve in curves] if shortest else []


def draw_layers(section: Section, sparsity: float, path: Path) -> Path | None:
    """How much of each layer is kept: a row for each configuration, means over seeds."""
    configurations = [c for c in section.at(sparsity) if _kept_shares(section, c)]
    if not configurations:
        return None
    rows = [_kept_shares(section, c) for c in configurations]
    layers = list(rows[0])
    shares = 100 * np.array([[row.get(layer, math.nan) for layer in layers] for row in rows])
    lowest = max(1e-2, float(np.nanmin(shares[shares > 0])))
    figure = Figure(
        figsize=(2.6 + 0.56 * len(layers), 1.6 + 0.26 * len(configurations)), layout="constrained"
    )
    axes = figure.add_subplot()
    norm = LogNorm(vmin=lowest, vmax=100)
    image = axes.imshow(np.maximum(shares, lowest), norm=norm, cmap="cividis", aspect="auto")
    for row, column in np.ndindex(shares.shape):
        share = shares[row, column]
        shade = "black" if norm(max(share, lowest)) > 0.62 else "white"
        text = f"{share:.0f}" if share >= 9.95 else f"{share:.2g}"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=7.5)
    sizes = _sizes(section, configurations[0])
    names = [f"{layer.removesuffix('.weight')}  {_short(sizes[layer])}" for layer in layers]
    axes.set_xticks(range(len(layers)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(configurations)), [c.name for c in configurations], fontsize=8.5)
    for place in range(1, len(configurations)):
        if configurations[place].method != configurations[place - 1].method:
            axes.axhline(place - 0.5, color="white", linewidth=2)
    axes.set_xlabel("layer and its number of weights")
    bar = figure.colorbar(image, ax=axes, label="kept, % of the layer", pad=0.01)
    bar.ax.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    figure.suptitle(f"{section.title}: what masks keep at sparsity {sparsity:g}", fontsize=12)
    return save(figure, path)


def _kept_shares(section: Section, configuration: Configuration) -> dict[str, float]:
    """Layer -> share kept, the mean over seeds."""
    results = [run.result for run in section.runs[configuration].values()]
    layers = results[0].get("layers") or {}
    return {
        layer: float(np.mean([r["layers"][layer][0] / r["layers"][layer][1] for r in results]))
        for layer in layers
    }


def _sizes(section: Section, configuration: Configuration) -> dict[str, int]:
    result = next(iter(section.runs[configuration].values())).result
    return {layer: counts[1] for layer, counts in result["layers"].items()}


def _short(count: int) -> str:
    for factor, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{letter}"
    return str(count)


def _broken(variant: str) -> str:
    """A variant's name with a line for each of its parts."""
    return variant.replace(" + ", "\n+ ")


def _variants(section: Section) -> list[str]:
    pruned = [c for c in section.runs if c.method != "dense"]
    by_variant = sorted(pruned, key=lambda c: (*variant_order(c.variant), c.note))
    return list(dict.fromkeys(c.variant_name for c in by_variant))


def _legend_of(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Each label once, from whichever panel has it."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    return list(found.values()), list(found)


def _std(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
