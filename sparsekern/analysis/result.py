"""What a comparison gives: the CKA matrix with names, its uncertainty, and ways to keep it."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._version import __version__
from ..training.store import write_atomically

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_FORMAT = 1
_ARRAYS = ("matrix", "standard_error", "p_values", "chance_levels")
_HTML_CELLS = 24  # a table with more rows or columns than this shows its corner only


@dataclass
class CKAResult:
    """CKA between the layers of one or two models.

    Attributes:
        matrix: ``(rows, columns)`` float64; not clamped: debiased CKA of unrelated layers is 0 on
            average and may be slightly negative.
        rows: names of the first model's layers, in the order of definition.
        columns: names of the second model's.
        n: samples.
        estimator: ``"unbiased"`` or ``"biased"``.
        kernel: the kernel, as text.
        mode: ``"minibatch"`` or ``"exact"``.
        batches: that were added up.
        models: names of the two models.
        same_model: whether rows and columns are layers of one model.
        standard_error: ``(rows, columns)``, or None where it could not be had (a single batch,
            the exact mode).
        p_values: ``(rows, columns)`` of the permutation test, or None without one.
        chance: the standard deviation of unbiased CKA between independent features; NaN for the
            biased estimator.
        chance_levels: ``(rows, columns)``: biased linear CKA of independent Gaussian features as
            wide as these, on average; None for another kernel, and for the unbiased estimator, for
            which it is 0.
        constant_rows: first-model layers without variation; their CKA is set to 0.
        constant_columns: the second model's.
        partial: whether the comparison was interrupted: the result is that of ``n`` samples.
    """

    matrix: Tensor
    rows: list[str]
    columns: list[str]
    n: int
    estimator: str = "unbiased"
    kernel: str = "linear"
    mode: str = "minibatch"
    batches: int = 1
    models: tuple[str, str] = ("model 1", "model 2")
    same_model: bool = False
    standard_error: Tensor | None = None
    p_values: Tensor | None = None
    chance: float = float("nan")
    chance_levels: Tensor | None = None
    constant_rows: list[str] = field(default_factory=list)
    constant_columns: list[str] = field(default_factory=list)
    partial: bool = False

    def __post_init__(self) -> None:
        expected = (len(self.rows), len(self.columns))
        for name in _ARRAYS:
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, and there are {expected[0]} rows and "
                    f"{expected[1]} columns"
                )

    @property
    def title(self) -> str:
        """What was compared, in a line."""
        return f"{self.models[0]} against {'itself' if self.same_model else self.models[1]}"

    @property
    def description(self) -> str:
        """How it was computed, in a line."""
        text = f"{self.estimator} CKA, {self.kernel} kernel, n={self.n}"
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        text += f", {batches}" if self.mode == "minibatch" else ", exact"
        return text + (", INTERRUPTED: part of the data" if self.partial else "")

    def __repr__(self) -> str:
        return (
            f"CKAResult({self.title}: {len(self.rows)} x {len(self.columns)} layers, "
            f"{self.description})"
        )

    def numpy(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The matrix as a numpy array."""
        return np.asarray(self.matrix.numpy(), dtype=np.float64)

    def save(self, path: str | Path) -> Path:
        """Writes everything to one ``.npz`` file with a JSON header, as a whole or not at all.

        Args:
            path: the file; ``.npz`` is added where it is missing.

        Returns:
            The path written.
        """
        target = Path(path)
        if target.suffix != ".npz":
            target = target.with_name(target.name + ".npz")
        fields = asdict(self)
        arrays = {name: fields.pop(name) for name in _ARRAYS}
        header = {"format": _FORMAT, "version": __version__, **fields}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            header=np.array(json.dumps(header)),
            **{name: value.numpy() for name, value in arrays.items() if value is not None},
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, buffer.getvalue())
        return target

    @classmethod
    def load(cls, path: str | Path) -> CKAResult:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not one of these files, or of a later format.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                header = json.loads(str(stored["header"]))
                arrays = {
                    name: torch.from_numpy(stored[name]) for name in _ARRAYS if name in stored
                }
            if header.pop("format") > _FORMAT:
                raise ValueError(f"it was written by sparsekern {header['version']}")
            header.pop("version")
            header["models"] = tuple(header["models"])
            fields: dict[str, Any] = {**arrays, **header}
            return cls(**fields)
        except FileNotFoundError:
            raise
        except Exception as error:  # a zip that is none, a header that is missing or damaged
            raise ValueError(f"{path} is not a saved CKAResult: {error}") from None

    def to_pandas(self) -> pandas.DataFrame:
        """The matrix as a data frame with the layers' names.

        Raises:
            ImportError: if pandas is not installed.
        """
        import pandas

        return pandas.DataFrame(self.numpy(), index=self.rows, columns=self.columns)

    def to_csv(self, path: str | Path | None = None) -> str:
        """The matrix as CSV, names in the first row and column; written to ``path`` if given."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["", *self.columns])
        for name, values in zip(self.rows, self.matrix.tolist(), strict=True):
            writer.writerow([name, *(repr(value) for value in values)])
        if path is not None:
            write_atomically(Path(path), text.getvalue().encode())
        return text.getvalue()

    def plot(self, axes: Axes | None = None, **options: Any) -> Axes:
        """Draws the matrix as a heat map; see :func:`sparsekern.analysis.plots.heat_map`."""
        from .plots import heat_map

        return heat_map(self, axes, **options)

    def plot_difference(self, other: CKAResult, axes: Axes | None = None, **options: Any) -> Axes:
        """Draws ``self - other`` on a scale that diverges from 0.

        Raises:
            ValueError: if the two results differ in their numbers of layers.
        """
        from .plots import difference_map

        return difference_map(self, other, axes, **options)

    def _repr_html_(self) -> str:
        rows, columns = self.rows[:_HTML_CELLS], self.columns[:_HTML_CELLS]
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th>{_cells(values[: len(columns)])}</tr>"
            for name, values in zip(rows, self.matrix.tolist(), strict=False)
        )
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        left_out = len(self.rows) - len(rows), len(self.columns) - len(columns)
        note = f"<p>{left_out[0]} rows and {left_out[1]} columns more</p>" if any(left_out) else ""
        return (
            f"<p><b>{html.escape(self.title)}</b><br>{html.escape(self.description)}</p>"
            f"<table><tr><th></th>{head}</tr>{cells}</table>{note}"
        )


def _cells(values: Sequence[float]) -> str:
    result = []
    for value in values:
        strength = max(0.0, min(1.0, value))
        colour = f"rgba(68,119,170,{strength:.2f})"
        ink = "white" if strength > 0.6 else "black"
        result.append(f'<td style="background:{colour};color:{ink}">{value:.3f}</td>')
    return "".join(result)
