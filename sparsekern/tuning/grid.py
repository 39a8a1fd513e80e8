"""Every algorithm timed on a grid of layers, to see whether the choice between them is a good one.

Each part of a layer's work (forward, the gradient of x, that of the weight, and the product of a
weight stored by its kept entries) is timed by itself, by every algorithm, in turn. What
:mod:`sparsekern.ops.masked.choice` would take is not asked here: the times are kept, and a choice
is held to them afterwards. Where two algorithms take about as long as each other, one timing does
not say which is the faster: such times are taken again, and all are kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bench.runner import settle_allocator
from ..ops.masked import calls, choice, conv_calls, packed
from ..ops.masked import rates as rates_of
from ..ops.masked.pattern import SparsityPattern
from ..ops.masked.rates import DtypeRates

ALGORITHMS = ("dense", "sparse")
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_SECONDS = 0.15  # for each part at each sparsity
_LEAST, _MOST = 6, 60  # rounds
_OUT_OF_LINE = 1.1  # times the ratio at the next sparsity
_CONTESTED = 1.4  # times the other algorithm: what lies further apart needs no more rounds


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer.

    Attributes:
        x: ``(batch, columns)``, or ``(N, C, H, W)`` of a convolution.
        weight: ``(rows, columns)``, or ``(filters, C / groups, kh, kw)``.
        stride: of a convolution.
        groups: of a convolution.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    groups: int = 1

    @property
    def is_convolution(self) -> bool:
        """Of images, padded by half the kernel."""
        return len(self.weight) == 4

    @property
    def out(self) -> tuple[int, ...]:
        """The shape of the result."""
        if not self.is_convolution:
            return (self.x[0], self.weight[0])
        stride, padding, dilation, _ = self.geometry
        size = conv_calls.output_size(self.x, self.weight, stride, padding, dilation)
        return (self.x[0], self.weight[0], *size)

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups of a convolution."""
        padding = [size // 2 for size in self.weight[2:]]
        return [self.stride] * 2, padding, [1, 1], self.groups

    def kept(self, sparsity: float) -> int:
        """Weights that remain."""
        return round((1 - sparsity) * torch.Size(self.weight).numel())

    def kind(self, dtype: torch.dtype) -> str | None:
        """What the model is corrected for; see :data:`.choice.CORRECTED`."""
        if self.is_convolution:
            return choice.convolution_kind(self.x, self.weight, self.out[2:])
        rows, columns = self.weight
        return choice.linear_kind(self.x[0], rows, columns, dtype)

    def modelled(
        self, part: str, nnz: int, dtype: torch.dtype, threads: int, rates: DtypeRates
    ) -> float:
        """The modelled time of the dense algorithm over that of the sparse one, not corrected."""
        if self.is_convolution:
            dense, sparse = choice.convolution_nanoseconds(
                part, self.x, self.weight, self.out[2:], nnz, dtype, threads, rates
            )
            return dense / sparse
        rows, columns = self.weight
        sizes = (self.x[0], rows, columns)
        if part == choice.PACKED:
            dense, sparse = choice.packed_nanoseconds(*sizes, nnz, dtype, threads, rates)
        else:
            dense = choice.dense_nanoseconds(*sizes, dtype, threads, rates)
            sparse = choice.sparse_nanoseconds(part, *sizes, nnz, dtype, threads, rates)
        return dense / sparse

    def chosen(
        self, part: str, nnz: int, dtype: torch.dtype, threads: int, rates: DtypeRates
    ) -> str:
        """The algorithm that the rates lead to."""
        if self.is_convolution:
            return choice.convolution_algorithm(
                part, self.x, self.weight, self.out[2:], nnz, dtype, threads, rates
            )
        rows, columns = self.weight
        if part == choice.PACKED:
            found = choice.packed_algorithm(self.x[0], rows, columns, nnz, dtype, threads, rates)
            return "dense" if found == "dense" else "sparse"
        return choice.algorithm(part, self.x[0], rows, columns, nnz, dtype, threads, rates)


# On either side of the caches, and of the lanes of a vector; convolutions of CIFAR and ImageNet
# networks, with stride, 1 x 1, in groups, depthwise, and of one image.
LAYERS = (
    Layer((1, 1024), (1024, 1024)),
    Layer((16, 512), (512, 512)),
    Layer((64, 1024), (1024, 1024)),
    Layer((128, 512), (512, 512)),
    Layer((512, 256), (1024, 256)),
    Layer((64, 2048), (4096, 2048)),
    Layer((1, 2048), (4096, 2048)),
    Layer((4, 1024), (512, 1024)),
    Layer((32, 784), (300, 784)),
    Layer((256, 1024), (4096, 1024)),
    Layer((1024, 192), (768, 192)),
    Layer((128, 16, 32, 32), (16, 16, 3, 3)),
    Layer((128, 32, 16, 16), (32, 32, 3, 3)),
    Layer((128, 64, 8, 8), (64, 64, 3, 3)),
    Layer((128, 16, 32, 32), (32, 16, 3, 3), stride=2),
    Layer((16, 64, 28, 28), (64, 64, 3, 3)),
    Layer((16, 256, 7, 7), (256, 256, 3, 3)),
    Layer((16, 64, 56, 56), (128, 64, 1, 1), stride=2),
    Layer((16, 64, 28, 28), (128, 64, 1, 1)),
    Layer((16, 64, 28, 28), (64, 16, 3, 3), groups=4),
    Layer((16, 64, 28, 28), (64, 1, 3, 3), groups=64),
    Layer((1, 64, 28, 28), (64, 64, 3, 3)),
    Layer((64, 3, 32, 32), (16, 3, 3, 3)),
    Layer((8, 128, 14, 14), (256, 128, 3, 3), stride=2),
    Layer((64, 32, 28, 28), (64, 32, 1, 1)),
    Layer((1, 128, 14, 14), (128, 128, 3, 3)),
    Layer((4, 64, 56, 56), (64, 64, 3, 3)),
)


@dataclass(frozen=True)
class Row:
    """Microseconds of one part of a layer, by algorithm, at each sparsity, each time anew."""

    layer: Layer
    part: str
    microseconds: dict[str, list[list[float]]]

    def ratio(self, index: int) -> float:
        """The time of the dense algorithm over that of the sparse one, at a sparsity."""
        dense, sparse = (self.microseconds[name][index] for name in ALGORITHMS)
        return statistics.median(a / b for a, b in zip(dense, sparse, strict=True))


@dataclass(frozen=True)
class Loss:
    """One choice, and its time over that of the fastest algorithm."""

    layer: Layer
    part: str
    sparsity: float
    chosen: str
    ratio: float

    def __str__(self) -> str:
        sizes = f"x {self.layer.x}, weight {self.layer.weight}"
        if self.layer.is_convolution:
            sizes += f", stride {self.layer.stride}, groups {self.layer.groups}"
        return f"{sizes}, {100 * self.sparsity:g}%, {self.part}: {self.chosen} {self.ratio:.2f}"


@dataclass(frozen=True)
class Grid:
    """What was measured, and on what."""

    processor: str
    isa: str
    threads: int
    dtype: str
    sparsities: tuple[float, ...]
    rows: tuple[Row, ...]

    def losses(self, rates: DtypeRates) -> Iterator[Loss]:
        """Of every choice that the rates lead to."""
        dtype = getattr(torch, self.dtype)
        for row in self.rows:
            for index, sparsity in enumerate(self.sparsities):
                nnz = row.layer.kept(sparsity)
                chosen = row.layer.chosen(row.part, nnz, dtype, self.threads, rates)
                ratio = row.ratio(index)
                lost = ratio if chosen == "dense" else 1 / ratio
                yield Loss(row.layer, row.part, sparsity, chosen, max(1.0, lost))

    def save(self, path: Path) -> None:
        """Writes a JSON file, a line for each row.

        Raises:
            OSError: if it cannot be written.
        """
        head = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rows"}
        rows = ",\n".join(json.dumps(dataclasses.asdict(row)) for row in self.rows)
        path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{rows}\n]}}\n', encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Grid:
        """Reads one."""
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(
            Row(_layer(**row["layer"]), row["part"], row["microseconds"])
            for row in content.pop("rows")
        )
        return Grid(sparsities=tuple(content.pop("sparsities")), rows=rows, **content)


def _layer(x: list[int], weight: list[int], stride: int, groups: int) -> Layer:
    return Layer(tuple(x), tuple(weight), stride, groups)


def measure(
    isa: str,
    threads: int,
    dtype: torch.dtype,
    say: Callable[[str], None],
    seconds: float = _SECONDS,
    sparsities: Sequence[float] | None = None,
) -> Grid:
    """Times every part of every layer of the grid by every algorithm.

    Args:
        isa: the instruction set in use.
        threads: that torch uses.
        dtype: of x and the weight.
        say: told which layer is going on.
        seconds: for each part at each sparsity, beyond its least rounds.
        sparsities: other ones than :data:`SPARSITIES`.
    """
    name = str(dtype).removeprefix("torch.")
    sparsities = tuple(SPARSITIES if sparsities is None else sparsities)
    rows = tuple(
        Row(layer, part, {name: [[] for _ in sparsities] for name in ALGORITHMS})
        for layer in LAYERS
        for part in parts_of(layer)
    )
    empty = Grid(rates_of.processor(), isa, threads, name, sparsities, rows)
    return again(empty, say, seconds)


def again(grid: Grid, say: Callable[[str], None], seconds: float = _SECONDS) -> Grid:
    """A grid with one more time of what is contested in it, and a first one of what has none.

    Args:
        grid: what was measured before, on this machine with these threads.
        say: told which layer is going on.
        seconds: for each part at each sparsity, beyond its least rounds.
    """
    settle_allocator()
    rows = []
    dtype = getattr(torch, grid.dtype)
    for layer in dict.fromkeys(row.layer for row in grid.rows):
        say(f"x {layer.x}, weight {layer.weight}")
        own = [row for row in grid.rows if row.layer == layer]
        new = {row.part: dict(row.microseconds) for row in own}
        for index, sparsity in enumerate(grid.sparsities):
            todo = [row.part for row in own if _is_open(row, index)]
            for part, call in parts(layer, sparsity, dtype).items() if todo else ():
                if part not in todo:
                    continue
                for name, spent in zip(ALGORITHMS, fastest(call, seconds), strict=True):
                    cells = new[part][name]
                    cell = [*cells[index], round(1e6 * spent, 1)]
                    new[part][name] = [*cells[:index], cell, *cells[index + 1 :]]
        rows += [Row(layer, row.part, new[row.part]) for row in own]
    return dataclasses.replace(grid, rows=tuple(rows))


def _is_open(row: Row, index: int) -> bool:
    """Whether what has been timed does not tell the faster algorithm, or is out of line."""
    cells = row.microseconds[ALGORITHMS[0]]
    if not cells[index] or _is_close(row.ratio(index)):
        return True
    # Fewer kept weights only speed the sparse algorithm up.
    around = [i for i in (index - 1, index, index + 1) if 0 <= i < len(cells) and cells[i]]
    ratios = [row.ratio(i) for i in around]
    return any(a > _OUT_OF_LINE * b for a, b in itertools.pairwise(ratios))


def _is_close(ratio: float) -> bool:
    return 1 / _CONTESTED < ratio < _CONTESTED


def parts_of(layer: Layer) -> tuple[str, ...]:
    """The parts of a layer's work."""
    return choice.PARTS if layer.is_convolution else (*choice.PARTS, choice.PACKED)


def parts(layer: Layer, sparsity: float, dtype: torch.dtype) -> dict[str, Callable[[str], object]]:
    """Each part of a layer's work, by the algorithm of a name."""
    x, weight = torch.randn(layer.x).to(dtype), torch.randn(layer.weight).to(dtype)
    grad = torch.randn(layer.out).to(dtype)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[torch.randperm(mask.numel())[: layer.kept(sparsity)]] = True
    pattern = SparsityPattern(mask.view(weight.shape))
    tensors = pattern.tensors
    geometry: tuple[Any, ...] = layer.geometry if layer.is_convolution else ()
    product: Callable[..., Any] = calls.masked_linear
    gradients: Callable[..., object] = calls.masked_linear_grad
    if layer.is_convolution:
        product, gradients = conv_calls.masked_conv2d, conv_calls.masked_conv2d_grad
    values: Tensor = product(x, weight, None, tensors, *geometry, True, True)[1]

    def forward(name: str) -> object:
        return product(x, weight, None, tensors, *geometry, name == "sparse", True)

    def backward(needs: list[bool]) -> Callable[[str], object]:
        def call(name: str) -> object:
            sparse = name == "sparse"
            options = (*geometry, needs, False, sparse, sparse)
            return gradients(grad, x, weight, values, tensors, *options)

        return call

    found: dict[str, Callable[[str], object]] = {
        "forward": forward,
        "input": backward([True, False, False]),
        "weight": backward([False, True, False]),
    }
    if layer.is_convolution:
        return found
    stored = packed.pack(weight, pattern)
    dense = packed.expand(stored, core=True)

    def inference(name: str) -> object:
        return packed.linear(x, stored, None) if name == "sparse" else F.linear(x, dense)

    return {**found, choice.PACKED: inference}


def fastest(call: Callable[[str], object], seconds: float) -> list[float]:
    """Seconds of every algorithm, taken in turn; other work on the machine only adds time."""
    found = [float("inf") for _ in ALGORITHMS]
    with torch.no_grad():
        for name in ALGORITHMS:
            call(name)  # what is set up once is not counted
        end = time.perf_counter() + seconds
        for rounds in range(1, _MOST + 1):
            for place, name in enumerate(ALGORITHMS):
                start = time.perf_counter()
                call(name)
                found[place] = min(found[place], time.perf_counter() - start)
            late = time.perf_counter() > end or not _is_close(found[0] / found[1])
            if rounds >= _LEAST and late:
                break
    return found
