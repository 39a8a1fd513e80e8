"""What dense products with a mask launch: pure functions of their sizes, without Triton.

A product is ``operations = 2 lanes features depth``: forward, of the batch with the rows of the
weight over its columns; for the gradient of the input, with its columns over its rows; for that
of the weight, of its rows with its columns over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...tiled.configurations import Configuration, configuration
from ...tiled.grids import Launch, cdiv, next_power_of_2

MASKED, TURNED, ADD, STEP = "multiply_masked", "multiply_turned", "add_parts", "move_scores"
KERNELS = (MASKED, TURNED, ADD, STEP)
FORWARD, INPUT, WEIGHT = "forward", "input", "weight"
LONGEST = 1 << 24  # rows, in elements, whose tiles 32-bit offsets reach
FEATURES = 128  # of a tile: rows of tensor-core instructions, and lines of memory
_LANES = (16, 128)  # of a tile: tensor cores take 16 or more
_PROGRAMS = 4  # to aim at, per multiprocessor
_PARTS_SHARE = 4  # what parts add to the bytes: at most this part of the others
_LEAST_STEPS = 4  # of the loop over the depth: fewer would not fill its pipeline


@dataclass(frozen=True)
class Product:
    """One dense product with a mask.

    Attributes:
        part: ``"forward"``, ``"input"`` or ``"weight"``.
        batch: rows of x.
        rows: of the weight.
        columns: of the weight.
        element: bytes of an element of x and of the gradient of the result.
        weight: bytes of an element of the weight, and of its gradient.
        operands: ``"ieee"``, ``"tf32x3"``, ``"tf32"``, ``"bf16"`` or ``"fp16"``.
        masked: whether the mask is read; a straight-through gradient has none.
        bias: whether the forward pass adds one.
    """

    part: str
    batch: int
    rows: int
    columns: int
    element: int
    weight: int
    operands: str
    masked: bool = True
    bias: bool = False

    @property
    def lanes(self) -> int:
        """Rows of the result, of which a tile has few or many."""
        return self.rows if self.part == WEIGHT else self.batch

    @property
    def features(self) -> int:
        """Columns of the result."""
        return self.rows if self.part == FORWARD else self.columns

    @property
    def depth(self) -> int:
        """What is summed over."""
        return {FORWARD: self.columns, INPUT: self.rows, WEIGHT: self.batch}[self.part]

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.lanes * self.features * self.depth

    @property
    def results(self) -> int:
        """Elements of the result."""
        return self.lanes * self.features

    @property
    def bytes_of_ends(self) -> int:
        """Bytes of the batch that are read."""
        sides = self.rows + self.columns if self.part == WEIGHT else self.depth
        return self.batch * sides * self.element

    @property
    def bytes_of_weight(self) -> int:
        """Bytes of the weight and the mask that are read."""
        each = (self.part != WEIGHT) * self.weight + self.masked
        return self.rows * self.columns * each

    @property
    def bytes_of_results(self) -> int:
        """Bytes of the result."""
        return self.results * (self.weight if self.part == WEIGHT else self.element)


@dataclass(frozen=True)
class Plan:
    """How a product is made.

    Attributes:
        kernel: its name.
        config: its configuration; ``block`` is the depth of a step, where the weight's elements are
            no larger than those of x.
        lanes: of a tile.
        step: of the loop over the depth.
        tiles: of the result.
        chunk: of the depth, that one program takes.
        splits: programs that share a tile's depth; with more than one their parts are added up.
    """

    kernel: str
    config: Configuration
    lanes: int
    step: int
    tiles: int
    chunk: int
    splits: int


def plan(product: Product, device: str, processors: int) -> Plan:
    """Chooses the tiles, and how many programs share the depth of one.

    Args:
        product: its sizes; none of them 0.
        device: class of the device, for its launch configurations.
        processors: multiprocessors of the device.
    """
    kernel = TURNED if product.part == WEIGHT else MASKED
    lanes = min(_LANES[1], max(_LANES[0], next_power_of_2(product.lanes)))
    if kernel == TURNED:
        lanes = _LANES[1]
    config = configuration(device, kernel, product.operands, lanes)
    # A step is so many bytes of the weight: shared memory holds several.
    larger = 1 if kernel == TURNED else max(1, product.weight // product.element)
    step = max(16, config.block // larger)
    tiles = cdiv(product.lanes, lanes) * cdiv(product.features, FEATURES)
    others = product.bytes_of_ends + product.bytes_of_weight + product.bytes_of_results
    splits = min(
        _PROGRAMS * processors // tiles,
        cdiv(product.depth, _LEAST_STEPS * step),
        others // (_PARTS_SHARE * 8 * product.results),  # parts are written and read, 4 bytes each
    )
    chunk = cdiv(cdiv(product.depth, max(1, splits)), step) * step
    return Plan(kernel, config, lanes, step, tiles, chunk, cdiv(product.depth, chunk))


def launches(product: Product, how: Plan, add: Configuration) -> list[Launch]:
    """The launches of a product, in order; ``add`` is the configuration of the adding kernel."""
    masked_late = product.part == WEIGHT and how.splits > 1
    mask = product.rows * product.columns * product.masked if masked_late else 0
    shift = product.features * product.element * product.bias
    weight = product.bytes_of_weight - mask
    read = product.bytes_of_ends + weight
    lane_tiles = cdiv(product.lanes, how.lanes)
    feature_tiles = cdiv(product.features, FEATURES)
    if product.part == WEIGHT:
        again = (
            product.batch
            * product.element
            * (product.rows * (feature_tiles - 1) + product.columns * (lane_tiles - 1))
        )
    else:
        again = (lane_tiles - 1) * weight + (feature_tiles - 1) * product.bytes_of_ends
    grid = (how.tiles, how.splits)
    if how.splits == 1:
        return [Launch(how.kernel, grid, read + shift, product.bytes_of_results, again)]
    parts = 4 * how.splits * product.results
    return [
        Launch(how.kernel, grid, read, parts, again),
        Launch(
            ADD,
            (cdiv(product.results, add.block),),
            parts + mask + shift,
            product.bytes_of_results,
        ),
    ]
