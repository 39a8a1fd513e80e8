"""A table of a model's masked layers: how sparse they are, what they cost, how fast they run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..ops import checks
from ..ops.masked import SparsityPattern
from .layers import MaskedConv2d
from .measurement import (
    LayerTimes,
    MaskedLayer,
    kernels,
    observe,
    sample_count,
    times,
    weight_shape,
)

_UNKNOWN = "–"
_WIDTH = 100  # of a printed table: long names lose their beginning


@dataclass(frozen=True)
class LayerSummary:
    """One masked or packed layer.

    Attributes:
        name: in the model.
        shape: of the weight.
        sparsity: the share of weights that the mask removes.
        nnz: the weights that are kept.
        flops: multiplications and additions of kept weights per sample; of a linear layer without
            an example input, per row of its input. None where it is not known.
        kernels: what computes the forward pass, the gradient of the input and that of the weight:
            ``"sparse"``, ``"dense"`` (of the masked weight) or ``"reference"``; empty without an
            example input, for the choice depends on the batch.
        times: None without an example input.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    nnz: int
    flops: int | None = None
    kernels: tuple[str, ...] = ()
    times: LayerTimes | None = None

    @property
    def forward_speedup(self) -> float | None:
        """Time of the dense layer over that of the masked one, forward; None if not measured."""
        return None if self.times is None else self.times.dense_forward / self.times.forward

    @property
    def training_speedup(self) -> float | None:
        """The same, forward and backward; None if not measured or no gradient is needed."""
        times = self.times
        if times is None or times.training is None or times.dense_training is None:
            return None
        return times.dense_training / times.training


@dataclass(frozen=True)
class ModelSummary:
    """The masked layers of a model; printed, a table.

    Attributes:
        rows: one per masked layer, in the order of the model.
        weights: of these layers, kept or not.
    """

    rows: tuple[LayerSummary, ...]
    weights: int

    @property
    def nnz(self) -> int:
        """The weights that are kept, over all rows."""
        return sum(row.nnz for row in self.rows)

    @property
    def sparsity(self) -> float:
        """The share of weights removed, over all rows."""
        return 1 - self.nnz / self.weights

    @property
    def flops(self) -> int | None:
        """Multiplications and additions per sample, over all rows; None if not known of all."""
        counts = [row.flops for row in self.rows]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def forward_speedup(self) -> float | None:
        """Time of all dense layers over that of the masked ones, forward; None if not measured."""
        times = [row.times for row in self.rows if row.times is not None]
        return (
            sum(t.dense_forward for t in times) / sum(t.forward for t in times) if times else None
        )

    @property
    def training_speedup(self) -> float | None:
        """The same, forward and backward; None if not measured or no gradient is needed."""
        times = [row.times for row in self.rows if row.times is not None]
        masked = sum(t.training or 0.0 for t in times)
        return sum(t.dense_training or 0.0 for t in times) / masked if masked else None

    def __str__(self) -> str:
        header = ("layer", "shape", "sparsity", "nnz", "FLOPs", "kernel", "forward", "training")
        total = _cells("total", "", self, "")
        lines = [header, *(_row_cells(row) for row in self.rows), total]
        # Columns that nothing is known of are left out.
        shown = [
            c
            for c in range(len(header))
            if any(line[c] not in ("", _UNKNOWN) for line in lines[1:])
        ]
        widths = {c: max(len(line[c]) for line in lines) for c in shown}
        widths[0] = min(widths[0], max(8, _WIDTH - sum(2 + widths[c] for c in shown[1:])))
        lines = [(_end(line[0], widths[0]), *line[1:]) for line in lines]
        left = ("layer", "shape", "kernel")
        text = [
            "  ".join(
                line[c].ljust(widths[c]) if header[c] in left else line[c].rjust(widths[c])
                for c in shown
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, text))
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def summary(model: nn.Module, input: Any = None, *, seconds: float = 0.2) -> ModelSummary:
    """What the masked layers of a model are, and with an example input what they gain.

    With an input the model is called once, in evaluation mode, to see what each layer gets; then
    each layer is timed on that against the dense layer of the same weight, calls interleaved,
    medians taken. Parameters, buffers, gradients and modes stay as they are.

    Args:
        model: with masked layers, such as :func:`sparsify` makes.
        input: what the model is called on: one argument, a tuple of them, or a dict of keyword
            arguments. The first dimension of its first tensor is the number of samples.
        seconds: about how long each layer is timed.

    Returns:
        The rows; ``print`` shows them as a table.

    Raises:
        TypeError: if the model is no module, or ``seconds`` no number.
        ValueError: if the model has no masked layer, the input no tensor with a sample in it, or
            ``seconds`` is negative.
    """
    if not checks.number(seconds, "seconds") >= 0:
        raise ValueError(f"seconds must not be negative, got {seconds}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # What torch.compile has made would run traced code, past the hooks.
    model = getattr(model, "_orig_mod", model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    if not layers:
        raise ValueError("model has no masked layer: sparsekern.nn.sparsify makes them")
    weights = sum(weight_shape(layer).numel() for layer in layers.values())
    if input is None:
        return ModelSummary(tuple(_unmeasured(*item) for item in layers.items()), weights)
    samples = sample_count(input)
    seen = observe(model, list(layers.values()), input)
    rows = []
    for name, layer in layers.items():
        row, use = _unmeasured(name, layer), seen[layer]
        if use.input is not None:
            row = dataclasses.replace(
                row,
                flops=2 * row.nnz * use.positions // samples,
                kernels=kernels(layer, use.input),
                times=times(layer, use.input, use.needs_input_grad, seconds),
            )
        else:  # it took no part
            row = dataclasses.replace(row, flops=0)
        rows.append(row)
    return ModelSummary(tuple(rows), weights)


def _unmeasured(name: str, layer: MaskedLayer) -> LayerSummary:
    pattern = layer.pattern
    if not isinstance(pattern, SparsityPattern):
        raise ValueError(f"layer {name!r} is on the meta device: what its mask keeps is not known")
    flops = None if isinstance(layer, MaskedConv2d) else 2 * pattern.nnz
    return LayerSummary(name, tuple(weight_shape(layer)), pattern.sparsity, pattern.nnz, flops)


def _row_cells(row: LayerSummary) -> tuple[str, ...]:
    distinct = list(dict.fromkeys(row.kernels))
    kernel = distinct[0] if len(distinct) == 1 else "/".join(row.kernels) or _UNKNOWN
    return _cells(row.name or "(model)", "×".join(map(str, row.shape)), row, kernel)


def _cells(
    name: str, shape: str, counted: LayerSummary | ModelSummary, kernel: str
) -> tuple[str, ...]:
    return (
        name,
        shape,
        f"{100 * counted.sparsity:.2f}%",
        f"{counted.nnz:,}" if counted.nnz < 10**7 else _short(counted.nnz),
        _short(counted.flops),
        kernel,
        _ratio(counted.forward_speedup),
        _ratio(counted.training_speedup),
    )


def _end(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _short(count: int | None) -> str:
    """Three digits and the unit: 12.3M."""
    if count is None:
        return _UNKNOWN
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _ratio(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}×"
