"""Every algorithm timed on a grid of layers, to see whether the choice between them is a good one.

Each part of a layer's work (forward, the gradient of x, that of the weight) is timed by itself, by
every algorithm, in turn. What :mod:`sparsekern.ops.masked.choice` would take is not asked here: the
times are kept, and a choice is held to them afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops.masked import calls, choice, conv_calls
from ..ops.masked import rates as rates_of
from ..ops.masked.pattern import SparsityPattern
from ..ops.masked.rates import DtypeRates

ALGORITHMS = ("dense", "sparse")
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_SECONDS = 0.03  # for each part at each sparsity
_LEAST, _MOST = 5, 41  # rounds


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

    def chosen(
        self, part: str, nnz: int, dtype: torch.dtype, threads: int, rates: DtypeRates
    ) -> str:
        """The algorithm that the rates lead to."""
        if self.is_convolution:
            return choice.convolution_algorithm(
                part, self.x, self.weight, self.out[2:], nnz, threads, rates
            )
        rows, columns = self.weight
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
)


@dataclass(frozen=True)
class Row:
    """Microseconds of one part of a layer, by algorithm, at each sparsity."""

    layer: Layer
    part: str
    microseconds: dict[str, list[float]]


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
                times = {name: found[index] for name, found in row.microseconds.items()}
                ratio = times[chosen] / min(times.values())
                yield Loss(row.layer, row.part, sparsity, chosen, ratio)

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
) -> Grid:
    """Times every part of every layer of the grid by every algorithm.

    Args:
        isa: the instruction set in use.
        threads: that torch uses.
        dtype: of x and the weight.
        say: told which layer is going on.
        seconds: for each part at each sparsity, beyond its least rounds.
    """
    rows = []
    for layer in LAYERS:
        say(f"x {layer.x}, weight {layer.weight}")
        found: dict[str, dict[str, list[float]]] = {
            part: {name: [] for name in ALGORITHMS} for part in choice.PARTS
        }
        for sparsity in SPARSITIES:
            for part, call in parts(layer, sparsity, dtype).items():
                for name, spent in zip(ALGORITHMS, fastest(call, seconds), strict=True):
                    found[part][name].append(round(1e6 * spent, 1))
        rows += [Row(layer, part, times) for part, times in found.items()]
    name = str(dtype).removeprefix("torch.")
    return Grid(rates_of.processor(), isa, threads, name, SPARSITIES, tuple(rows))


def parts(layer: Layer, sparsity: float, dtype: torch.dtype) -> dict[str, Callable[[str], object]]:
    """Each part of a layer's work, by the algorithm of a name."""
    x, weight = torch.randn(layer.x).to(dtype), torch.randn(layer.weight).to(dtype)
    grad = torch.randn(layer.out).to(dtype)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[torch.randperm(mask.numel())[: layer.kept(sparsity)]] = True
    tensors = SparsityPattern(mask.view(weight.shape)).tensors
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

    return {
        "forward": forward,
        "input": backward([True, False, False]),
        "weight": backward([False, True, False]),
    }


def fastest(call: Callable[[str], object], seconds: float) -> list[float]:
    """Seconds of every algorithm, taken in turn; other work on the machine only adds time."""
    samples: list[list[float]] = [[] for _ in ALGORITHMS]
    with torch.no_grad():
        for name in ALGORITHMS:
            call(name)  # what is set up once is not counted
        end = time.perf_counter() + seconds
        while len(samples[0]) < _LEAST or (len(samples[0]) < _MOST and time.perf_counter() < end):
            for own, name in zip(samples, ALGORITHMS, strict=True):
                start = time.perf_counter()
                call(name)
                own.append(time.perf_counter() - start)
    return [min(own) for own in samples]
