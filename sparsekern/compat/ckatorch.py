"""Functions of the package ckatorch: ``from sparsekern.compat.ckatorch import cka_base, ...``.

Names and arguments are those of ckatorch 1.0. Results are float64 where ckatorch's are. They
differ, on purpose:

- ``cka_base(..., unbiased=True, method="hsic")`` is unbiased too; ckatorch computes the biased one.
- The median of the RBF kernel is numpy's (the mean of the middle two of an even number), over
  centred features; ckatorch takes the lower of the two.
- Constant features give 0 instead of NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.similarity import RBF, Linear, cka, gram, hsic
from ..ops.similarity.kernels import Kernel
from ..ops.similarity.reference import double_center, u_center

_METHODS = ("fro_norm", "hsic")


def linear_kernel(x: Tensor) -> Tensor:  # (n, d) -> (n, n)
    """The linear Gram matrix ``x xᵀ``."""
    return gram(x)


def rbf_kernel(x: Tensor, threshold: float = 1.0) -> Tensor:  # (n, d) -> (n, n)
    """The RBF Gram matrix, ``threshold`` times the median distance wide."""
    return gram(x, RBF(fraction=threshold))


def center_gram_matrix(gram_matrix: Tensor, unbiased: bool = False) -> Tensor:  # (n, n) -> (n, n)
    """A doubly centred copy of a Gram matrix, or a U-centred one.

    Raises:
        ValueError: if the matrix is not symmetric.
    """
    _symmetric(gram_matrix, "gram_matrix")
    return u_center(gram_matrix.detach()) if unbiased else double_center(gram_matrix.detach())


def hsic0(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """Biased HSIC of two Gram matrices, ``tr(K H L H) / (n - 1)²``.

    Raises:
        ValueError: if the matrices are not symmetric, or differ in size.
    """
    _symmetric(gram_x, "gram_x")
    _symmetric(gram_y, "gram_y")
    if gram_x.shape != gram_y.shape:
        raise ValueError(f"gram_x has shape {tuple(gram_x.shape)} and gram_y {tuple(gram_y.shape)}")
    return (double_center(gram_x) * double_center(gram_y)).sum() / (len(gram_x) - 1) ** 2


def hsic1(gram_x: Tensor, gram_y: Tensor) -> Tensor:  # (b, n, n), (b, n, n) -> (b,)
    """Unbiased HSIC of each pair of Gram matrices (Song et al. 2012).

    Raises:
        ValueError: if the shapes differ, are not ``(b, n, n)``, or n is below 4.
    """
    if gram_x.dim() != 3 or gram_x.shape != gram_y.shape or gram_x.shape[1] != gram_x.shape[2]:
        raise ValueError(
            "gram_x and gram_y must have one shape (b, n, n), got "
            f"{tuple(gram_x.shape)} and {tuple(gram_y.shape)}"
        )
    n = gram_x.shape[1]
    if n < 4:
        raise ValueError(f"the unbiased estimator needs at least 4 samples, got {n}")
    pairs = zip(gram_x, gram_y, strict=True)
    products = [(u_center(k) * u_center(other)).sum() for k, other in pairs]
    return torch.stack(products) / (n * (n - 3))


def cka_base(
    x: Tensor,
    y: Tensor,
    kernel: str = "linear",
    unbiased: bool = False,
    threshold: float = 1.0,
    method: str = "fro_norm",
) -> Tensor:
    """CKA of two feature matrices, in float64.

    Args:
        x: ``(n, j)`` features.
        y: ``(n, k)`` features.
        kernel: ``"linear"`` or ``"rbf"``.
        unbiased: with U-centred Gram matrices.
        threshold: width of the RBF kernel, in medians.
        method: ``"fro_norm"`` or ``"hsic"``; the result is the same.

    Raises:
        ValueError: for other names.
    """
    kernels: dict[str, Kernel] = {"linear": Linear(), "rbf": RBF(fraction=threshold)}
    if kernel not in kernels:
        raise ValueError(f"kernel must be 'linear' or 'rbf', got {kernel!r}")
    if method not in _METHODS:
        raise ValueError(f"method must be 'fro_norm' or 'hsic', got {method!r}")
    estimator = "unbiased" if unbiased else "biased"
    return cka(x.double(), y.double(), kernel=kernels[kernel], estimator=estimator)


def cka_batch(x: Tensor, y: Tensor) -> Tensor:  # (b, n, j), (b, n, k) -> ()
    """Unbiased linear CKA over batches, summed before it is divided (Nguyen et al. 2021).

    Raises:
        ValueError: if the shapes are not ``(b, n, ...)`` with the same b and n.
    """
    if x.dim() < 2 or x.shape[:2] != y.shape[:2]:
        raise ValueError(
            "x and y must have shapes (b, n, j) and (b, n, k), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    batches = [(one.double(), two.double()) for one, two in zip(x, y, strict=True)]
    cross = torch.stack([hsic(one, two) for one, two in batches]).sum()
    first = torch.stack([hsic(one, one) for one, _ in batches]).sum()
    second = torch.stack([hsic(two, two) for _, two in batches]).sum()
    norm = first.sqrt() * second.sqrt()
    return torch.where(norm == 0, 0, cross / torch.where(norm == 0, 1, norm))


def plot_cka(
    cka_matrix: Tensor,
    first_layers: Sequence[str],
    second_layers: Sequence[str],
    first_name: str = "First Model",
    second_name: str = "Second Model",
    save_path: str | None = None,
    title: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "magma",
    show_ticks_labels: bool = False,
    short_tick_labels_splits: int | None = None,
    use_tight_layout: bool = True,
    show_annotations: bool = True,
    show_img: bool = True,
    show_half_heatmap: bool = False,
    invert_y_axis: bool = True,
) -> None:
    """Draws a CKA matrix as a heat map.

    Args:
        cka_matrix: the matrix, a row for each of the first layers.
        first_layers: names of the rows.
        second_layers: names of the columns.
        first_name: of the first model.
        second_name: of the second.
        save_path: a folder for the picture, named after the title.
        title: above the picture; the names of the models if None.
        vmin: value of the first colour; with ``vmax`` or not at all.
        vmax: value of the last colour.
        cmap: a colour map of matplotlib.
        show_ticks_labels: writes the names of the layers.
        short_tick_labels_splits: only so many parts of the names, from the end.
        use_tight_layout: fits the labels into the picture.
        show_annotations: writes the values into the cells.
        show_img: shows the picture.
        show_half_heatmap: leaves out what lies below the diagonal.
        invert_y_axis: puts the first layer at the bottom.

    Raises:
        ValueError: if only one of ``vmin`` and ``vmax`` is given, or names do not fit the matrix.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    from ..analysis import CKAResult

    if (vmin is None) != (vmax is None):
        raise ValueError(f"vmin and vmax must be given together, got {vmin} and {vmax}")
    parts = short_tick_labels_splits
    names = [
        ["-".join(name.split(".")[-parts:]) if parts else name for name in layers]
        for layers in (first_layers, second_layers)
    ]
    shown = cka_matrix.detach().cpu().double()
    result = CKAResult(shown, names[0], names[1], 0, models=(first_name, second_name))
    heading = f"{first_name} vs {second_name}" if title is None else title
    figure, axes = plt.subplots(layout="constrained" if use_tight_layout else None)
    limits = None if vmin is None or vmax is None else (vmin, vmax)
    if limits is None:
        limits = float(shown.min()), float(shown.max())
    result.plot(
        axes, colours=cmap, limits=limits, values=show_annotations, boundaries=False, title=heading
    )
    if show_half_heatmap:
        _hide_lower_half(axes, shown)
    if not show_ticks_labels:
        axes.set_xticks([])
        axes.set_yticks([])
    if not invert_y_axis:
        axes.invert_yaxis()
    axes.set_xlabel(f"{second_name} layers")
    axes.set_ylabel(f"{first_name} layers")
    if save_path is not None:
        name = heading.replace(" ", "_").replace("/", "-")
        figure.savefig(f"{save_path}/{name}.png", dpi=400, bbox_inches="tight")
    if show_img and matplotlib.get_backend().lower() != "agg":
        plt.show()
    plt.close(figure)


def _hide_lower_half(axes: Any, matrix: Tensor) -> None:
    hidden = torch.ones_like(matrix, dtype=torch.bool).tril(diagonal=-1)
    (image,) = axes.images
    image.set_data(matrix.masked_fill(hidden, torch.nan).numpy())
    columns = matrix.shape[1]
    for index, text in enumerate(axes.texts):
        text.set_visible(not hidden[index // columns, index % columns])


def _symmetric(matrix: Tensor, name: str) -> None:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must have shape (n, n), got {tuple(matrix.shape)}")
    if not torch.allclose(matrix, matrix.T):
        raise ValueError(f"{name} must be symmetric")
