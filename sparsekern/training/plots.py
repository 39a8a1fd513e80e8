"""The pictures of an experiment: accuracy curves, CKA heat maps, the regulariser's cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .cost import Cost
from .models import similarity_groups
from .report import label
from .settings import Settings
from .store import PICTURES

Record = dict[str, Any]
_COLOURS = ("#4477aa", "#ee6677")  # told apart by every kind of colour vision (Paul Tol)
_DPI = 110
_MOST_VALUES = 12  # in a row of a heat map, to be written into it


def draw_pictures(
    directory: Path, settings: Settings, records: Sequence[Record], cost: Cost | None
) -> list[Path]:
    """Draws all pictures that there are results for; returns their paths."""
    accuracy, similarity, costs = (directory / name for name in PICTURES)
    draw_accuracy(accuracy, settings, records)
    draw_similarity(similarity, settings, records)
    if cost is None:
        return [accuracy, similarity]
    draw_cost(costs, settings, cost)
    return [accuracy, similarity, costs]


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path)


def draw_accuracy(path: Path, settings: Settings, records: Sequence[Record]) -> None:
    """Held-out accuracy by epoch: the mean over seeds, and a band of one standard deviation."""
    figure = Figure(figsize=(7, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    last: list[float] = []
    last_epoch = 2
    for loss, colour in zip(settings.variants, _COLOURS, strict=False):
        runs = [
            [
                record["accuracy"]
                for record in records
                if record["kind"] == "epoch"
                and (record["regularizer"], record["seed"]) == (loss, seed)
            ]
            for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        ]
        # ART ends when its rule says so: runs of different lengths are drawn with one end.
        shortest, longest = min(map(len, runs)), max(map(len, runs))
        curves = 100 * np.array([run[-shortest:] for run in runs])
        epochs = np.arange(longest - shortest + 1, longest + 1)
        last_epoch = max(last_epoch, longest)
        mean, std = curves.mean(axis=0), curves.std(axis=0)
        axes.plot(epochs, mean, color=colour, label=f"{label(loss)}: {mean[-1]:.2f} %")
        axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        last.append(float(mean[-1]))
    # The first epochs would press the interesting ones flat.
    axes.set_ylim(max(0.0, min(last) - 12), 101)
    axes.set_xlim(1, last_epoch)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"{settings.held_out} accuracy, %")
    axes.set_title(
        f"{settings.model} on {settings.data}, {settings.method} at sparsity "
        f"{settings.sparsity:g}, {settings.seeds} seed(s): mean ± std",
        fontsize=11,
    )
    axes.grid(alpha=0.3)
    axes.legend(title="at the end")
    _save(figure, path)


def draw_similarity(path: Path, settings: Settings, records: Sequence[Record]) -> None:
    """Interlayer CKA, the mean over seeds, one heat map for each loss on the same scale."""
    groups = similarity_groups(settings.model)
    runs = [record for record in records if record["kind"] == "run"]
    by_loss = {
        loss: [record for record in runs if record["regularizer"] == loss]
        for loss in settings.variants
    }
    maps = [np.mean([r["cka"] for r in of], axis=0) for of in by_loss.values()]
    lowest = min(float(values.min()) for values in maps)
    lowest = np.floor(10 * lowest) / 10
    figure = Figure(figsize=(1.2 + 5 * len(maps), 5.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, values, (loss, of) in zip(panels, maps, by_loss.items(), strict=True):
        image = axes.imshow(values, vmin=lowest, vmax=1, cmap="viridis")
        inside = np.mean([record["interlayer_cka"] for record in of])
        axes.set_title(f"{label(loss)}: mean of the compared pairs {inside:.3f}", fontsize=11)
        if len(values) <= _MOST_VALUES:
            _write_values(axes, values, threshold=(1 + lowest) / 2)
        _outline(axes, [len(group) for group in groups])
        names = [name for group in groups for name in group]
        blocks = [re.sub("^(stage|layer|blocks?[.])", "", name) for name in names]
        small = {"fontsize": 10 if len(blocks) <= _MOST_VALUES else 7}
        axes.set_xticks(range(len(blocks)), blocks, rotation=0 if len(blocks) < 9 else 90, **small)
        axes.set_yticks(range(len(blocks)), blocks, **small)
        axes.set_xlabel("block (stage.position)")
    panels[0].set_ylabel("block (stage.position)")
    figure.colorbar(image, ax=panels, label="unbiased linear CKA", shrink=0.8)
    figure.suptitle(
        f"CKA between the blocks of {settings.model} at sparsity {settings.sparsity:g}, "
        f"{settings.held_out} images, mean of {settings.seeds} seed(s);\n"
        f"CKA-SR compares {'the outlined' if len(groups) > 1 else 'all'} pairs",
        fontsize=11,
    )
    _save(figure, path)


def _write_values(axes: Axes, values: NDArray[np.float64], threshold: float) -> None:
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        shade = "black" if value > threshold else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=9)


def _outline(axes: Axes, sizes: Sequence[int]) -> None:
    start = -0.5
    for size in sizes:
        axes.add_patch(Rectangle((start, start), size, size, fill=False, color="red", lw=2.5))
        start += size


def draw_cost(path: Path, settings: Settings, cost: Cost) -> None:
    """The regulariser's time on a step it acts on, in the three ways of computing it."""
    figure = Figure(figsize=(7, 3), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    names = [
        f"this package\n({cost.backend} back end)",
        "plain PyTorch,\nno loop over pairs",
        "authors' formulation,\nloop over pairs",
    ]
    times = [cost.fused, cost.plain, cost.pairwise]
    bars = axes.barh(names, times, color=["#ee6677", "#4477aa", "#bbbbbb"])
    axes.bar_label(bars, [f"{time:.2f} ms" for time in times], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(times))
    axes.set_xlabel("value and gradient, ms (median)")
    axes.set_title(
        f"CKA regulariser on {cost.samples} images, {settings.model}, {settings.threads} thread(s);"
        f"\na training step without it takes {cost.step:.1f} ms",
        fontsize=11,
    )
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
