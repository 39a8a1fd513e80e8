"""What a similarity call launches on a GPU: pure functions of its sizes, without Triton or torch.

One forward pass over linear or fixed-bandwidth kernels is four launches whatever the number of
layers: the table of addresses, the partial Gram matrices, their sums by rows, and the inner
products with the result. The median of RBF adds its selection passes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ...tiled.configurations import Configuration, configuration
from ...tiled.grids import Launch, cdiv, next_power_of_2

LINEAR, RBF, POLYNOMIAL, COSINE = range(4)
NO_CENTRING, DOUBLE_CENTRING, U_CENTRING = range(3)
FEW, COLUMNS, PLAIN = "gram_few", "gram_columns", "gram_plain"
APART, TILES, MIRRORED = "gram_apart", "gram_tiles", "gram_mirrored"
PRODUCT_FEW, PRODUCT_TILES = "product_few", "product_tiles"
STATS, VARIANCE = 8, 2  # as in entries.py: numbers per layer, and which of them is RBF's σ²
TILE_GROUP = 8  # rows of tiles that are walked together

# Samples up to which every product of a column is kept in registers; with float32 features for
# which no rounding is allowed, tensor cores are of no use and this form goes on to 16.
_FEW_ROWS = 8
_FEW_ROWS_EXACT = 16
# Samples up to which programs hold whole columns, and up to which one program makes all of their
# products: its accumulators, the operands that a product is split into and features widened from
# 16 bits must all fit in registers (compiled to see). Three tiles of 128 x 128 are 192 of the 255
# registers that a thread may have, and what did not fit would be 200 bytes and more.
_COLUMN_ROWS = {"fp64": 64}
_COLUMN_ROWS_DEFAULT = 256
_TOGETHER = {"fp64": 64, "ieee": 128, "tf32x3": 128}
_TOGETHER_DEFAULT = 256
_TOGETHER_WIDENED = 128
# Where tensor cores take both operands from shared memory while the program goes on, features that
# they take as they are (operands, bytes of an element) need not pass through registers.
_ASYNCHRONOUS = {"cuda:9.0"}
_AS_THEY_ARE = {("tf32", 4), ("bf16", 2), ("fp16", 2)}
_TILE_ROWS = {"fp64": 64}
_TILE_ROWS_DEFAULT = 128
_PRODUCT_ROWS = {"fp64": 64, "ieee": 64}
_PRODUCT_ROWS_DEFAULT = 128
# Programs to aim at, per multiprocessor: one where each leaves a large partial Gram matrix.
_PROGRAMS = {COLUMNS: 4, APART: 4, TILES: 2}
_FEW_PROGRAMS = {8: 4, 16: 8}  # by rows; the registers of four fit at once
_LARGE_ROWS = 128
_PLAIN_ROWS = 256  # of gram_plain: two programs of half as many fit beside each other
_LAYERS_AT_ONCE = 32
_INNER_PROGRAMS = 128


@dataclass(frozen=True)
class Sizes:
    """What a call is given: samples, features per layer, and bytes of an element."""

    n: int
    dims: tuple[int, ...]
    element: int
    operands: str  # of matrix products: "ieee", "tf32x3", "tf32", "bf16", "fp16", "fp64"

    @property
    def count(self) -> int:
        """Layers."""
        return len(self.dims)

    @property
    def bytes_of_features(self) -> int:
        """All features, once."""
        return self.n * sum(self.dims) * self.element

    @property
    def accumulated(self) -> int:
        """Bytes of a Gram matrix's entry."""
        return 8 if self.operands == "fp64" else 4


@dataclass(frozen=True)
class GramPlan:
    """How the Gram matrices of all layers are made."""

    form: str  # the kernel
    config: Configuration
    rows: int  # of a tile
    two: bool  # forms of whole columns: two tiles a side
    chunk: int  # columns of a layer that one program takes
    splits: tuple[int, ...]  # programs per layer (and per tile)
    mirror: bool  # whole matrices are written at once, with nothing to add up
    tiles: int  # gram_tiles and gram_mirrored: tiles a side

    @property
    def pieces(self) -> int:
        """Partial Gram matrices."""
        return sum(self.splits)

    @property
    def triangle(self) -> int:
        """Lower tiles of gram_tiles."""
        return self.tiles * (self.tiles + 1) // 2

    @property
    def wide(self) -> int:
        """Tiles of gram_mirrored that are not halves; of these there is one for each column."""
        return (self.tiles * self.tiles) // 4

    @property
    def programs(self) -> int:
        """Programs of the kernel."""
        if self.form == TILES:
            return self.pieces * self.triangle
        if self.form == MIRRORED:
            return self.pieces * (self.wide + (self.tiles + 1) // 2)
        return self.pieces * (3 if self.form == APART else 1)

    @property
    def side(self) -> int:
        """Rows of a partial Gram matrix, its padding included; gram_tiles has none."""
        return self.rows * (2 if self.two else 1)


@functools.lru_cache(maxsize=256)
def split_columns(dims: tuple[int, ...], block: int, target: int) -> tuple[int, tuple[int, ...]]:
    """The least multiple of ``block`` that cuts all layers into at most ``target`` pieces.

    Returns:
        The width, and how many pieces each layer has.
    """
    target = max(target, sum(d > 0 for d in dims))
    low, high = 1, max(1, cdiv(max(dims), block))
    while low < high:
        middle = (low + high) // 2
        if sum(cdiv(d, middle * block) for d in dims) <= target:
            high = middle
        else:
            low = middle + 1
    width = low * block
    return width, tuple(cdiv(d, width) for d in dims)


def _rows_together(sizes: Sizes) -> int:
    if sizes.operands == "tf32" and sizes.element == 2:
        return _TOGETHER_WIDENED
    return _TOGETHER.get(sizes.operands, _TOGETHER_DEFAULT)


def gram_plan(
    sizes: Sizes, device: str, processors: int, kernel: int, center: bool = True
) -> GramPlan:
    """Chooses the form, the tiles and the split along the features.

    Args:
        sizes: of the call.
        device: class of the device, for its launch configurations.
        processors: multiprocessors of the device.
        kernel: code of the kernel function.
        center: whether the features' means are taken off.
    """
    n, operands = sizes.n, sizes.operands
    exact = operands in ("ieee", "fp64")
    as_they_are = device in _ASYNCHRONOUS and (operands, sizes.element) in _AS_THEY_ARE
    if n <= (_FEW_ROWS_EXACT if exact else _FEW_ROWS):
        rows = max(8, next_power_of_2(n))
        config = configuration(device, FEW, operands, rows)
        chunk, splits = split_columns(sizes.dims, config.block, _FEW_PROGRAMS[rows] * processors)
        return GramPlan(FEW, config, rows, False, chunk, splits, False, 1)
    if n <= _COLUMN_ROWS.get(operands, _COLUMN_ROWS_DEFAULT):
        side = max(16, next_power_of_2(n))
        if as_they_are and side >= _LARGE_ROWS:
            config = configuration(device, PLAIN, operands, side)
            each = max(1, _PLAIN_ROWS // side)
            chunk, splits = split_columns(sizes.dims, config.block, each * processors)
            return GramPlan(PLAIN, config, side // 2, True, chunk, splits, False, 1)
        if n > _rows_together(sizes):
            config = configuration(device, APART, operands, side)
            target = _PROGRAMS[APART] * processors // 3
            chunk, splits = split_columns(sizes.dims, config.block, target)
            return GramPlan(APART, config, side // 2, True, chunk, splits, False, 1)
        config = configuration(device, COLUMNS, operands, side)
        two = side >= _LARGE_ROWS
        each = 1 if two else _PROGRAMS[COLUMNS]
        chunk, splits = split_columns(sizes.dims, config.block, each * processors)
        return GramPlan(COLUMNS, config, side // 2 if two else side, two, chunk, splits, False, 1)
    rows = _TILE_ROWS.get(operands, _TILE_ROWS_DEFAULT)
    config = configuration(device, TILES, operands, rows)
    tiles = cdiv(n, rows)
    triangle = tiles * (tiles + 1) // 2
    chunk, splits = split_columns(
        sizes.dims, config.block, _PROGRAMS[TILES] * processors // triangle
    )
    # A layer without features has no program to write its zeros.
    mirror = kernel != RBF and all(split == 1 for split in splits)
    if mirror and as_they_are and not center:
        config = configuration(device, MIRRORED, operands, rows)
        return GramPlan(MIRRORED, config, rows, False, max(sizes.dims), splits, True, tiles)
    return GramPlan(TILES, config, rows, False, chunk, splits, mirror, tiles)


@dataclass(frozen=True)
class ProductPlan:
    """How the gradients of the features are made."""

    form: str  # the kernel
    config: Configuration
    operands: str
    rows: int  # samples of a tile
    depth: int  # samples that are multiplied at a time
    row_blocks: int
    programs: int


def compare_grad_launches(
    sizes: Sizes, how: ProductPlan, median: bool, groups: bool, table_piece: int
) -> list[Launch]:
    """Everything that their backward pass launches: features are read once and written once."""
    count = sizes.count
    entries = count * sizes.n**2 * sizes.accumulated
    combine = (sizes.n, cdiv(count, layers_at_once(count)))
    launches = [
        *table_launches((5 if groups else 4) * count + 1, table_piece),
        Launch("pair_weights", (count,)),
        Launch("combine_row", combine, entries, entries),
    ]
    if median:
        launches.append(Launch("add_median_gradient", (count,)))
    features = sizes.bytes_of_features
    if how.programs:
        again = (how.row_blocks - 1) * features
        launches.append(Launch(how.form, (how.programs,), entries + features, features, again))
    return launches


def product_plan(sizes: Sizes, forward: GramPlan, device: str) -> ProductPlan:
    """Chooses the form and the tiles of the backward pass."""
    operands = sizes.operands
    if operands in ("bf16", "fp16"):
        operands = "tf32"  # the gradients of Gram matrices need more than 8 digits and 5 exponents
    if forward.form == FEW:
        config = configuration(device, PRODUCT_FEW, operands, forward.rows)
        programs = sum(cdiv(d, config.block) for d in sizes.dims)
        return ProductPlan(PRODUCT_FEW, config, operands, forward.rows, 0, 1, programs)
    largest = _PRODUCT_ROWS.get(operands, _PRODUCT_ROWS_DEFAULT)
    rows = min(largest, max(16, next_power_of_2(sizes.n)))
    config = configuration(device, PRODUCT_TILES, operands, rows)
    row_blocks = cdiv(sizes.n, rows)
    programs = row_blocks * sum(cdiv(d, config.block) for d in sizes.dims)
    depth = min(32, rows)
    return ProductPlan(PRODUCT_TILES, config, operands, rows, depth, row_blocks, programs)


def mean_blocks(sizes: Sizes, block: int) -> int:
    """Programs of column_means."""
    return sum(cdiv(d, block) for d in sizes.dims)


def layers_at_once(count: int) -> int:
    """Layers that one program of the inner products takes: tiles of matrix products have 16."""
    return min(_LAYERS_AT_ONCE, max(16, next_power_of_2(count)))


def inner_grid(n: int, count: int, block: int) -> tuple[int, int, int]:
    """Programs of the inner products: over entries, and over pairs of blocks of layers."""
    blocks = cdiv(count, layers_at_once(count))
    return min(_INNER_PROGRAMS, cdiv(n * n, block)), blocks, blocks


STRIP_ROWS, STRIP_COLUMNS = 8, 32


def strips(n: int) -> int:
    """Strips of rows that a Gram matrix is added up in."""
    return cdiv(n, STRIP_ROWS)


def median_passes(sizes: Sizes) -> int:
    """Digits of 8 bits in the floats that distances are."""
    return sizes.accumulated


def table_launches(numbers: int, piece: int) -> list[Launch]:
    """Writing so many numbers to the device."""
    return [Launch("fill_table", (1,), 0, 8 * numbers)] * cdiv(numbers, piece)


def gram_launches(
    sizes: Sizes, plan: GramPlan, kernel: int, centring: int, center_features: bool, median: bool
) -> list[Launch]:
    """Launches that lead to products and sums of rows, the table excepted."""
    n, count = sizes.n, sizes.count
    entries = count * n * n * sizes.accumulated
    means = sum(sizes.dims) * sizes.accumulated
    launches = []
    if plan.form == TILES and center_features:
        blocks = mean_blocks(sizes, means_configuration(sizes).block)
        if blocks:
            launches.append(Launch("column_means", (blocks,), sizes.bytes_of_features, means))
    if plan.form in (TILES, MIRRORED):
        lower = n * (n + 1) // 2 * sizes.accumulated
        written = entries if plan.mirror else plan.pieces * lower
        again = plan.tiles  # a tile reads two blocks of samples, and one on the diagonal one twice
    else:
        written = plan.pieces * plan.side**2 * sizes.accumulated
        if plan.form != FEW and center_features:
            written += means
        apart = plan.form == APART
        # A program reads both halves of the samples for their means; else what it multiplies.
        again = (2 if center_features else 1) if apart else 0
    if plan.pieces:
        features = sizes.bytes_of_features
        launches.append(Launch(plan.form, (plan.programs,), features, written, again * features))
    rows = (strips(n), count)
    if not plan.mirror:
        launches.append(
            Launch("reduce_rows", rows, plan.pieces * n * n * sizes.accumulated, entries)
        )
    if median:
        passes = median_passes(sizes)
        programs = (median_programs(n), count)
        launches += [Launch("count_digits", programs, entries)] * passes
        launches.append(Launch("write_median", (count,)))
    if centring != NO_CENTRING and (plan.mirror or median):
        launches.append(Launch("reduce_rows", rows, entries))
    return launches


def means_configuration(sizes: Sizes) -> Configuration:
    """Configuration of column_means: narrow blocks where the features alone give few programs."""
    config = configuration("default", "column_means", "any", 0)
    block = config.block
    while block > 32 and mean_blocks(sizes, block) < 256:
        block //= 2
    return Configuration(block, config.warps, config.stages)


def median_programs(n: int) -> int:
    """Programs that share the entries of one layer in a histogram pass."""
    return min(_INNER_PROGRAMS, cdiv(n * n, 4096))


def inner_configuration(sizes: Sizes, device: str) -> Configuration:
    """Configuration of the inner products: matrix products are 16 entries deep at the least."""
    config = configuration(device, "inner_products", "any", 0)
    block = max(16, min(config.block, next_power_of_2(sizes.n * sizes.n)))
    return Configuration(block, config.warps, config.stages)


def compare_launches(
    sizes: Sizes,
    plan: GramPlan,
    device: str,
    kernel: int,
    center_features: bool,
    median: bool,
    table_piece: int,
) -> list[Launch]:
    """Everything that HSIC, CKA or a sum of CKA launches in its forward pass."""
    entries = sizes.count * sizes.n**2 * sizes.accumulated
    block = inner_configuration(sizes, device).block
    return [
        *table_launches(4 * sizes.count + 1, table_piece),
        *gram_launches(sizes, plan, kernel, U_CENTRING, center_features, median),
        Launch("inner_products", inner_grid(sizes.n, sizes.count, block), entries),
    ]
