"""Launches of the Triton kernels for one call, in the order that plan.py says."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...precision import accumulation_dtype
from ...tiled import device
from ...tiled.configurations import Configuration, configuration
from ...tiled.grids import cdiv, next_power_of_2
from ...tiled.launching import OPERANDS, TYPES, launch
from . import entries, features, gradient, inner, median, plain, plan
from .state import State

# Kernel code, its two parameters, centring code, whether features are centred first.
Spec = tuple[int, float, float, int, bool]

# Half a unit in the last place of the operands; 0 where they are the features themselves.
_OPERAND_UNITS = {"tf32": 2.0**-11, "bf16": 2.0**-9, "tf32x3": 2.0**-22}
_NOT_FOUND = torch.iinfo(torch.int64).max
_BLOCK_S = 16  # strips, or column pieces, that are added at a time
# Numbers that a program of reduce_rows, and of the inner products, adds at a time.
_REDUCED = 2048  # by more, Triton 3.6 runs out of registers
_INNER_REDUCED = 4096


@dataclass(frozen=True)
class Quantity:
    """What is asked for: a matrix of HSIC (0) or CKA (1), or CKA summed inside groups of layers."""

    code: int
    first: int = 0  # layers before it are rows, the others columns; 0: all are both
    groups: tuple[int, ...] = ()  # the group of each layer
    mean: bool = False


@functools.cache
def _constants(
    kernel: int, parameter0: float, parameter1: float, centring: int
) -> dict[str, int | float]:
    degree = int(parameter0) if kernel == plan.POLYNOMIAL else 1
    c = parameter1 if kernel == plan.POLYNOMIAL else 0.0
    return {"KIND": kernel, "C": c, "DEGREE": degree, "CENTRING": centring}


class Call:
    """One call of a similarity operator: its features, how they are treated, its launches."""

    def __init__(self, xs: Sequence[Tensor], spec: Spec) -> None:
        self.xs = [_rows(x) for x in xs]
        x = self.xs[0]
        self.x = x
        self.n = int(x.shape[0])
        self.count = len(xs)
        self.spec = spec
        self.dtype = accumulation_dtype(x.dtype)
        self.kernel, self.parameter0, self.parameter1, self.centring, self.center = spec
        self.device_class = device.device_class(x.device)
        operands = device.matrix_operands(x.dtype, self.device_class, not self.center)
        dims = tuple(int(layer.shape[1]) for layer in self.xs)
        self.sizes = plan.Sizes(self.n, dims, x.element_size(), operands)
        self.processors = device.processors(x.device)
        self.plan = plan.gram_plan(
            self.sizes, self.device_class, self.processors, self.kernel, self.center
        )
        self.has_median = self.kernel == plan.RBF and self.parameter1 == 0
        self.constants = _constants(*spec[:4])
        self.small = configuration(self.device_class, "entries", "any", 0)

    def guard(self) -> contextlib.AbstractContextManager[object]:
        """Makes the features' device the current one."""
        return device.guard(self.x)

    @property
    def _layers(self) -> int:
        return next_power_of_2(self.count)

    def _features(self) -> dict[str, Any]:
        aligned = all(
            x.data_ptr() % 16 == x.stride(0) % 16 == x.shape[1] % 16 == 0 for x in self.xs
        )
        dtype = TYPES[self.x.dtype]
        return {"DTYPE": dtype, "CENTER": self.center, "ALIGNED": aligned, "COUNT": self._layers}

    def table(self, extra: Sequence[int]) -> Tensor:
        """Addresses, widths, strides and more per layer, on the device; a 0 comes last."""
        numbers = [x.data_ptr() for x in self.xs]
        numbers += self.sizes.dims
        numbers += [x.stride(0) for x in self.xs]
        numbers += [*extra, 0]
        table = self.x.new_empty(len(numbers), dtype=torch.int64)
        for at in range(0, len(numbers), features.TABLE_PIECE):
            piece = numbers[at : at + features.TABLE_PIECE]
            values = tuple(map(features.tagged, piece))
            launch(
                features.fill_table,
                (1,),
                Configuration(1, 1, 1),
                table[at:],
                values,
                COUNT=len(piece),
            )
        return table

    def products(self, table: Tensor, products: Tensor, state: State) -> tuple[Tensor, int]:
        """Launches what makes the products of all layers and the row sums of their kernel values.

        Returns:
            Sums of squared column means by pieces of layers, and the width of those pieces.
        """
        how = self.plan
        squares_width = how.chunk
        pieces = how.pieces
        if how.form == plan.TILES and self.center:
            config = plan.means_configuration(self.sizes)
            squares_width, pieces = config.block, plan.mean_blocks(self.sizes, config.block)
        squares = self.x.new_empty(max(1, pieces), dtype=torch.float64)
        target = products
        if not how.mirror:
            shape = max(1, how.pieces) * (self.n if how.form == plan.TILES else how.side) ** 2
            target = self.x.new_empty(shape, dtype=self.dtype)
        if how.pieces:
            self._partial_products(table, target, state, squares)
        sums = self.centring != plan.NO_CENTRING
        if self.kernel == plan.RBF and not self.has_median:
            variances = state.stats.view(self.count, plan.STATS)[:, plan.VARIANCE]
            variances.fill_(self.parameter1 * self.parameter1)
        if not how.mirror:
            self._reduce(table, target, products, state, True, sums and not self.has_median)
        if self.has_median:
            self._median(products, state)
        if sums and (how.mirror or self.has_median):
            self._reduce(table, target, products, state, False, True)
        return squares, squares_width

    def _partial_products(
        self, table: Tensor, target: Tensor, state: State, squares: Tensor
    ) -> None:
        how, config = self.plan, self.plan.config
        meta = self._features()
        grid = (how.programs,)
        if how.form == plan.FEW:
            launch(
                features.gram_few, grid, config, table, self.count, target, squares, self.n,
                how.chunk, **meta, ROWS=how.rows, BLOCK_D=config.block, STAGES=config.stages,
            )  # fmt: skip
            return
        dot, precision = OPERANDS[self.sizes.operands]
        meta |= {"DOT": dot, "PRECISION": precision, "BLOCK_D": config.block}
        if how.form == plan.COLUMNS:
            launch(
                features.gram_columns, grid, config, table, self.count, target, state.means,
                squares, self.n, how.chunk, **meta, ROWS=how.rows, TWO=how.two,
                STAGES=config.stages,
            )  # fmt: skip
            return
        if how.form == plan.PLAIN:
            launch(
                plain.gram_plain, grid, config, table, self.count, target, state.means, squares,
                self.n, how.chunk, **meta, ROWS=how.rows,
            )  # fmt: skip
            return
        if how.form == plan.APART:
            launch(
                features.gram_apart, grid, config, table, self.count, target,
                state.means, squares, self.n, how.chunk, **meta, ROWS=how.rows,
            )  # fmt: skip
            return
        if how.form == plan.MIRRORED:
            launch(
                plain.gram_mirrored, grid, config, table, self.count, target, self.n,
                how.tiles, how.wide, DTYPE=meta["DTYPE"], DOT=dot, PRECISION=precision,
                ALIGNED=meta["ALIGNED"], BLOCK_N=how.rows, BLOCK_D=config.block,
            )  # fmt: skip
            return
        if self.center:
            means = plan.means_configuration(self.sizes)
            launch(
                features.column_means, (len(squares),), means, table, self.count, state.means,
                squares, self.n, DTYPE=meta["DTYPE"], ALIGNED=meta["ALIGNED"],
                COUNT=meta["COUNT"], BLOCK_N=16, BLOCK_D=means.block, STAGES=means.stages,
            )  # fmt: skip
        launch(
            features.gram_tiles, grid, config, table, self.count, target,
            state.means, self.n, how.tiles, how.chunk, **meta, MIRROR=how.mirror,
            BLOCK_N=how.rows, GROUP=plan.TILE_GROUP,
        )  # fmt: skip

    def _reduce(
        self,
        table: Tensor,
        partials: Tensor,
        products: Tensor,
        state: State,
        from_parts: bool,
        sums: bool,
    ) -> None:
        how = self.plan
        splits = next_power_of_2(max(how.splits)) if from_parts else 1
        area = plan.STRIP_ROWS * plan.STRIP_COLUMNS
        strips = plan.strips(self.n)
        launch(
            entries.reduce_rows, (strips, self.count), self.small, table, self.count, partials,
            products, state.stats, state.row_sums, state.parts, self.n,
            self.n if how.form == plan.TILES else how.side, how.chunk, strips, **self.constants,
            FROM_PARTS=from_parts, SUMS=sums, COUNT=self._layers, BLOCK_R=plan.STRIP_ROWS,
            BLOCK_C=plan.STRIP_COLUMNS, BLOCK_S=min(splits, max(1, _REDUCED // area)),
        )  # fmt: skip

    def _median(self, distances: Tensor, state: State) -> None:
        passes = plan.median_passes(self.sizes)
        counts = torch.zeros(self.count * 2 * passes * 256, dtype=torch.int32, device=self.x.device)
        programs = plan.median_programs(self.n)
        for step in range(passes):
            launch(
                median.count_digits, (programs, self.count), self.small, distances, counts,
                self.n, programs, PASS=step, PASSES=passes, BLOCK_E=1024,
            )  # fmt: skip
        launch(
            median.write_median, (self.count,), self.small, counts, state.stats, self.n,
            FRACTION=self.parameter0, PASSES=passes, WIDE=self.dtype == torch.float64,
        )  # fmt: skip

    def inner_products(
        self,
        table: Tensor,
        squares: tuple[Tensor, int],
        state: State,
        quantity: Quantity,
        out: Tensor,
    ) -> None:
        """Launches the inner products of all layers and writes what was asked for into ``out``."""
        layers = plan.layers_at_once(self.count)
        config = plan.inner_configuration(self.sizes, self.device_class)
        grid = plan.inner_grid(self.n, self.count, config.block)
        pieces = torch.empty(
            grid[0] * self.count * self.count, dtype=torch.float64, device=self.x.device
        )
        arrived = table[-1:]
        unit = torch.finfo(self.dtype).eps / 2
        launch(
            inner.inner_products, grid, config, table, self.count, state.products,
            state.stats, state.row_sums, state.parts, squares[0], squares[1], pieces, arrived,
            state.inner, out, self.n, plan.strips(self.n), grid[0], quantity.first,
            UNIT=unit, DOT_UNIT=_OPERAND_UNITS.get(self._forward_operands(), 0.0),
            INPUT_UNIT=torch.finfo(self.x.dtype).eps / 2, **self.constants,
            QUANTITY=quantity.code, GROUPS=bool(quantity.groups), MEAN=quantity.mean,
            COUNT=self._layers, LAYERS=layers, ONE_BLOCK=grid[1] == 1,
            BLOCK_E=config.block, BLOCK_P=max(1, _INNER_REDUCED // layers**2), BLOCK_S=_BLOCK_S,
        )  # fmt: skip

    def _forward_operands(self) -> str:
        return "ieee" if self.plan.form == plan.FEW else self.sizes.operands

    def write_entries(self, products: Tensor, state: State, out: Tensor) -> None:
        """Launches the writing of one layer's Gram matrix, centred or not; may be in place."""
        launch(
            entries.write_entries, (self.n,), self.small, products, state.stats, state.row_sums,
            state.parts, out, self.n, plan.strips(self.n), **self.constants,
            BLOCK_C=self.small.block, BLOCK_S=_BLOCK_S,
        )  # fmt: skip

    def pair_weights(self, grad: Tensor, table: Tensor, state: State, quantity: Quantity) -> Tensor:
        """Launches the weights of every Gram matrix in the gradient of every other."""
        weights = self.x.new_empty(self.count * self.count, dtype=self.dtype)
        launch(
            gradient.pair_weights, (self.count,), self.small, grad, state.inner, state.stats,
            table, weights, self.count, quantity.first, self.n, CENTRING=self.centring,
            QUANTITY=quantity.code, GROUPS=bool(quantity.groups), MEAN=quantity.mean,
            BLOCK=max(16, min(128, self._layers)),
        )  # fmt: skip
        return weights

    def operand(
        self, source: Tensor, weights: Tensor, state: State, sums: State, *, from_grams: bool
    ) -> Tensor:
        """Launches the matrices that the features are multiplied with, one per layer.

        Args:
            source: what is centred, weighted and summed: the Gram matrices of ``state`` or, for
                the gradient of one Gram matrix, the symmetric upstream gradient.
            weights: ``(layers, layers)``.
            state: of the forward pass.
            sums: holds the row sums of ``source``.
            from_grams: whether ``source`` holds Gram matrices.
        """
        operand = self.x.new_empty((self.count, self.n, self.n), dtype=self.dtype)
        through = self.x.new_empty(
            self.count * self.n if self.kernel == plan.RBF else 1, dtype=torch.float64
        )
        find = self.has_median
        found = self.x.new_empty(2 * self.count, dtype=torch.int64)
        if find:
            found.fill_(_NOT_FOUND)
        layers = plan.layers_at_once(self.count)
        blocks = cdiv(self.count, layers)
        block = max(16, min(self.small.block, next_power_of_2(self.n)))
        launch(
            gradient.combine_row, (self.n, blocks), self.small, source, weights, state.products,
            state.stats, sums.row_sums, sums.parts, operand, through, found, self.count, self.n,
            plan.strips(self.n), SOURCE=self.kernel if from_grams else plan.LINEAR,
            SCALED=from_grams, **self.constants, FIND=find, LAYERS=layers, BLOCK_E=block,
            BLOCK_S=_BLOCK_S,
        )  # fmt: skip
        if find:
            launch(
                gradient.add_median_gradient, (self.count,), self.small, operand, state.stats,
                through, found, self.n, FRACTION=self.parameter0, BLOCK_E=256,
            )  # fmt: skip
        return operand

    def source_sums(self, table: Tensor, source: Tensor, state: State) -> None:
        """Launches row sums of an upstream gradient, into ``state``."""
        strips = plan.strips(self.n)
        constants = {**self.constants, "KIND": plan.LINEAR}
        launch(
            entries.reduce_rows, (strips, 1), self.small, table, 1, source, source, state.stats,
            state.row_sums, state.parts, self.n, self.n, 1, strips, **constants,
            FROM_PARTS=False, SUMS=True, COUNT=1, BLOCK_R=plan.STRIP_ROWS,
            BLOCK_C=plan.STRIP_COLUMNS, BLOCK_S=1,
        )  # fmt: skip

    def gradients(self, table: Tensor, operand: Tensor, state: State, outs: list[Tensor]) -> None:
        """Launches the gradients of the features into ``outs``; empty ones are not computed."""
        meta = self._features()
        meta["ALIGNED"] &= all(out.data_ptr() % 16 == 0 for out in outs)
        how = plan.product_plan(self.sizes, self.plan, self.device_class)
        if not how.programs:
            return
        config = how.config
        if how.form == plan.PRODUCT_FEW:
            launch(
                gradient.product_few, (how.programs,), config, table, self.count, operand,
                self.n, **meta, ROWS=how.rows, BLOCK_D=config.block,
            )  # fmt: skip
            return
        dot, precision = OPERANDS[how.operands]
        launch(
            gradient.product_tiles, (how.programs,), config, table, self.count, operand,
            state.means, self.n, how.row_blocks, **meta, DOT=dot, PRECISION=precision,
            BLOCK_N=how.rows, BLOCK_K=how.depth, BLOCK_D=config.block,
        )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """The features with the elements of a row adjacent, as the kernels read them."""
    if x.is_neg():
        x = x.resolve_neg()
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()
