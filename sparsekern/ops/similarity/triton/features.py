"""Triton kernels that read features: Gram matrices of all layers in one launch.

Layers of different width share a launch through a table of addresses on the device: row 0 holds
addresses, row 1 widths, row 2 strides between samples (in elements). Row 3 holds the groups of
layers in the forward pass; in the backward pass the addresses of their gradients, and row 4 the
groups. One program takes one piece of one layer's columns and writes a partial Gram matrix;
:mod:`.entries` adds the parts up in a fixed order. Offsets are 64-bit throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

# One launch of fill_table writes so many numbers: a launch has 4 KB of arguments. The table of 50
# layers is one launch then.
TABLE_PIECE = 256


@triton.jit
def fill_table(table, values, COUNT: tl.constexpr):
    """Writes kernel arguments to device memory: no copy from the host, which a graph would lose.

    ``values`` come from :func:`tagged`.
    """
    for index in tl.static_range(COUNT):
        tl.store(table + index, (values[index] & 0x3FFFFFFFFFFFFFFF) >> 1)


def tagged(number: int) -> int:
    """A number below 2⁶⁰ as an argument that is never 1, never even and always of 64 bits.

    The just-in-time compiler makes a variant of a kernel for each pattern of such properties.
    """
    return number << 1 | 1 | 1 << 62


@triton.jit
def locate(table, count, piece, width, COUNT: tl.constexpr):
    """The layer of a piece when every layer is cut into pieces of ``width`` columns.

    Returns:
        The layer, the piece's index in it, the layer's first piece, and the columns before it.
    """
    layers = tl.arange(0, COUNT)
    widths = tl.load(table + count + layers, mask=layers < count, other=0)
    pieces = (widths + width - 1) // width
    layer = tl.sum((tl.cumsum(pieces, 0) <= piece).to(tl.int32), 0)
    first = tl.sum(tl.where(layers < layer, pieces, 0), 0)
    before = tl.sum(tl.where(layers < layer, widths, 0), 0)
    return layer, piece - first, first, before


@triton.jit
def layer_features(table, count, layer, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer, width and stride of a layer; ``ALIGNED`` says that 16 divides all three.

    Only then does the compiler make wide loads of a row: an address from memory tells it nothing.
    """
    x = tl.load(table + layer).to(tl.pointer_type(DTYPE))
    width = tl.load(table + count + layer)
    stride = tl.load(table + 2 * count + layer)
    if ALIGNED:
        x = tl.multiple_of(x, 16)
        width = tl.multiple_of(width, 16)
        stride = tl.multiple_of(stride, 16)
    return x, width, stride


@triton.jit
def last_column(begin, chunk, width, ALIGNED: tl.constexpr):
    """The end of a piece of columns that starts at ``begin``."""
    end = tl.minimum(begin + chunk, width)
    if ALIGNED:
        end = tl.multiple_of(end, 16)
    return end


@triton.jit(do_not_specialize=["count"])
def gram_few(
    table,
    count,
    partials,  # [pieces, ROWS, ROWS]
    squares,  # [pieces]: sum of squared column means
    n,
    chunk,
    DTYPE: tl.constexpr,
    CENTER: tl.constexpr,
    ALIGNED: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Partial Gram matrices of very few samples, streamed: all products of a column in registers.

    Without tensor cores, whose smallest tile would waste most of its work and round the features;
    every lane keeps its own columns' products until the end.
    """
    ACC: tl.constexpr = partials.dtype.element_ty
    item = tl.program_id(0)
    layer, split, _, _ = locate(table, count, item, chunk, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    begin = split * chunk
    end = last_column(begin, chunk, width, ALIGNED)
    rows = tl.arange(0, ROWS)
    valid = (rows < n)[:, None]
    products = tl.zeros((ROWS, ROWS, BLOCK_D), ACC)
    energy = tl.zeros((1, 1, BLOCK_D), ACC)
    for at in tl.range(begin, end, BLOCK_D, num_stages=STAGES):
        columns = at + tl.arange(0, BLOCK_D)
        inside = valid & (columns < end)[None, :]
        sample = tl.load(x + rows[:, None] * stride + columns[None, :], mask=inside, other=0)
        a = sample[:, None, :].to(ACC)
        b = sample[None, :, :].to(ACC)
        if CENTER:
            mean = tl.sum(a, 0, keep_dims=True) / n
            energy += mean * mean
            a = tl.where((rows < n)[:, None, None], a - mean, 0)
            b = tl.where((rows < n)[None, :, None], b - mean, 0)
        products += a * b
    at = item.to(tl.int64) * ROWS * ROWS
    entries = rows[:, None] * ROWS + rows[None, :]
    tl.store(partials + at + entries, tl.sum(products, 2))
    if CENTER:
        tl.store(squares + item, tl.sum(energy).to(tl.float64))


@triton.jit
def whole_columns(
    x,
    stride,
    means,  # of the first column of the layer
    n,
    begin,
    end,
    k00,  # the upper left, lower left and lower right tile, so far
    k10,
    k11,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS: tl.constexpr,
    TWO: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Products of up to ``ROWS`` (or, with ``TWO``, 2 ``ROWS``) samples, their columns held whole.

    Returns:
        The tiles, and the sum of squared column means.
    """
    ACC: tl.constexpr = k00.dtype
    rows = tl.arange(0, ROWS)
    upper = x + rows[:, None] * stride
    lower = x + (rows[:, None] + ROWS) * stride
    in_upper = (rows < n)[:, None]
    in_lower = (rows + ROWS < n)[:, None]
    energy = tl.zeros((BLOCK_D,), ACC)
    for at in tl.range(begin, end, BLOCK_D, num_stages=STAGES):
        columns = at + tl.arange(0, BLOCK_D)
        inside = columns < end
        a = tl.load(upper + columns[None, :], mask=in_upper & inside[None, :], other=0).to(ACC)
        if TWO:
            b = tl.load(lower + columns[None, :], mask=in_lower & inside[None, :], other=0).to(ACC)
        if CENTER:
            total = tl.sum(a, 0)
            if TWO:
                total += tl.sum(b, 0)
            mean = total / n
            energy += mean * mean
            tl.store(means + columns, mean, mask=inside)
            a = tl.where(in_upper, a - mean[None, :], 0)
            if TWO:
                b = tl.where(in_lower, b - mean[None, :], 0)
        a = a.to(DOT)
        a_t = tl.trans(a)
        k00 = tl.dot(a, a_t, k00, input_precision=PRECISION, out_dtype=ACC)
        if TWO:
            b = b.to(DOT)
            k10 = tl.dot(b, a_t, k10, input_precision=PRECISION, out_dtype=ACC)
            k11 = tl.dot(b, tl.trans(b), k11, input_precision=PRECISION, out_dtype=ACC)
    return k00, k10, k11, tl.sum(energy)


@triton.jit
def store_products(out, k00, k10, k11, ROWS: tl.constexpr, TWO: tl.constexpr):
    """Writes the lower tiles of one partial Gram matrix."""
    LD: tl.constexpr = 2 * ROWS if TWO else ROWS
    rows = tl.arange(0, ROWS)
    out += rows[:, None] * LD + rows[None, :]
    tl.store(out, k00)
    if TWO:
        tl.store(out + ROWS * LD, k10)
        tl.store(out + ROWS * LD + ROWS, k11)


@triton.jit(do_not_specialize=["count"])
def gram_columns(
    table,
    count,
    partials,  # [pieces, rows, rows], rows = ROWS or 2 ROWS; lower tiles only
    means,  # [sum of widths]
    squares,  # [pieces]
    n,
    chunk,
    DTYPE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    ALIGNED: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    TWO: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Partial Gram matrices of up to ``ROWS`` (or, with ``TWO``, 2 ``ROWS``) samples.

    A program holds its columns whole, so their means are exact and every feature is read once.
    """
    ACC: tl.constexpr = partials.dtype.element_ty
    item = tl.program_id(0)
    layer, split, _, before = locate(table, count, item, chunk, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    begin = split * chunk
    end = last_column(begin, chunk, width, ALIGNED)
    k00 = tl.zeros((ROWS, ROWS), ACC)
    k10 = tl.zeros((ROWS, ROWS), ACC)
    k11 = tl.zeros((ROWS, ROWS), ACC)
    k00, k10, k11, energy = whole_columns(
        x, stride, means + before, n, begin, end, k00, k10, k11, DOT, PRECISION, CENTER, ROWS, TWO,
        BLOCK_D, STAGES,
    )  # fmt: skip
    LD: tl.constexpr = 2 * ROWS if TWO else ROWS
    store_products(partials + item.to(tl.int64) * LD * LD, k00, k10, k11, ROWS, TWO)
    if CENTER:
        tl.store(squares + item, energy.to(tl.float64))


@triton.jit(do_not_specialize=["count"])
def gram_apart(
    table,
    count,
    partials,  # [pieces, 2 ROWS, 2 ROWS]; lower tiles only
    means,  # [sum of widths]
    squares,  # [pieces]
    n,
    chunk,
    DTYPE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    ALIGNED: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """As ``gram_columns`` with ``TWO``, each of the three lower tiles in a program of its own.

    For operands beside which the registers hold one tile. The three are neighbours in the launch
    and walk the same columns: the first to ask brings them from memory, the others find them in
    the L2 cache. Each sees its columns whole, so no pass for their means comes before.
    """
    ACC: tl.constexpr = partials.dtype.element_ty
    tile = tl.program_id(0) % 3  # upper left, lower left, lower right
    item = tl.program_id(0) // 3
    layer, split, _, before = locate(table, count, item, chunk, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    begin = split * chunk
    end = last_column(begin, chunk, width, ALIGNED)
    rows = tl.arange(0, ROWS)
    own = rows + tl.where(tile == 0, 0, ROWS)  # the rows of the tile
    other = rows + tl.where(tile == 0, ROWS, 0)  # its columns in the lower left tile
    in_own = (own < n)[:, None]
    in_other = (other < n)[:, None]
    if not CENTER:  # a tile on the diagonal needs nothing else
        in_other = (other < tl.where(tile == 1, n, 0))[:, None]
    noted = tl.where(tile == 0, end, begin)
    k = tl.zeros((ROWS, ROWS), ACC)
    energy = tl.zeros((BLOCK_D,), ACC)
    for at in range(begin, end, BLOCK_D):
        columns = at + tl.arange(0, BLOCK_D)
        inside = columns < end
        place = x + columns[None, :]
        a = tl.load(place + own[:, None] * stride, mask=in_own & inside[None, :], other=0).to(ACC)
        b = tl.load(place + other[:, None] * stride, mask=in_other & inside[None, :], other=0).to(
            ACC
        )
        if CENTER:
            mean = (tl.sum(a, 0) + tl.sum(b, 0)) / n
            energy += mean * mean
            tl.store(means + before + columns, mean, mask=columns < noted)
            a = tl.where(in_own, a - mean[None, :], 0)
            b = tl.where(in_other, b - mean[None, :], 0)
        b = tl.where(tile == 1, b, a)
        k = tl.dot(a.to(DOT), tl.trans(b.to(DOT)), k, input_precision=PRECISION, out_dtype=ACC)
    LD: tl.constexpr = 2 * ROWS
    column = rows + tl.where(tile == 2, ROWS, 0)
    out = partials + item.to(tl.int64) * LD * LD
    tl.store(out + own[:, None] * LD + column[None, :], k)
    if CENTER:
        if tile == 0:
            tl.store(squares + item, tl.sum(energy).to(tl.float64))


@triton.jit(do_not_specialize=["count"])
def column_means(
    table,
    count,
    means,
    squares,  # [pieces of BLOCK_D columns]
    n,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Means of every column, taken about the first sample, so that an offset costs no digits."""
    ACC: tl.constexpr = means.dtype.element_ty
    item = tl.program_id(0)
    layer, split, _, before = locate(table, count, item, BLOCK_D, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    columns = split * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    pivot = tl.load(x + columns, mask=inside, other=0).to(ACC)
    total = tl.zeros((BLOCK_N, BLOCK_D), ACC)
    for at in tl.range(0, n, BLOCK_N, num_stages=STAGES):
        rows = at + tl.arange(0, BLOCK_N)
        valid = (rows < n)[:, None] & inside[None, :]
        a = tl.load(x + rows[:, None] * stride + columns[None, :], mask=valid, other=0).to(ACC)
        total += tl.where(valid, a - pivot[None, :], 0)
    mean = pivot + tl.sum(total, 0) / n
    tl.store(means + before + columns, mean, mask=inside)
    tl.store(squares + item, tl.sum(mean * mean).to(tl.float64))


@triton.jit
def triangle_row(index):
    """The row of entry ``index`` when the entries of a lower triangle are counted row by row."""
    row = ((tl.sqrt(8.0 * index.to(tl.float64) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    return tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)


@triton.jit
def lower_tile(index, tiles, GROUP: tl.constexpr):
    """Row and column of a lower tile, in bands of ``GROUP`` rows walked column by column.

    Tiles that run at the same time then share the features that they read, in the L2 cache.
    """
    band = triangle_row(index) // GROUP * GROUP
    height = tl.minimum(GROUP, tiles - band)
    index -= band * (band + 1) // 2
    square = band * height  # tiles left of the band's own triangle
    inner = tl.maximum(index - square, 0)
    inner_row = triangle_row(inner)
    row = tl.where(index < square, index % height, inner_row)
    column = tl.where(
        index < square, index // height, band + inner - inner_row * (inner_row + 1) // 2
    )
    return band + row, column


@triton.jit(do_not_specialize=["count", "tiles"])
def gram_tiles(
    table,
    count,
    out,  # [pieces, n, n] lower tiles, or with MIRROR [count, n, n] whole
    means,
    n,
    tiles,
    chunk,
    DTYPE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    ALIGNED: tl.constexpr,
    MIRROR: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gram matrices of many samples by lower tiles: each product is made once, then mirrored."""
    ACC: tl.constexpr = out.dtype.element_ty
    triangle = tiles * (tiles + 1) // 2
    item = tl.program_id(0) // triangle
    layer, split, _, before = locate(table, count, item, chunk, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    begin = split * chunk
    end = last_column(begin, chunk, width, ALIGNED)
    row, column = lower_tile(tl.program_id(0) % triangle, tiles, GROUP)
    i = row * BLOCK_N + tl.arange(0, BLOCK_N)
    j = column * BLOCK_N + tl.arange(0, BLOCK_N)
    # Samples past the last are the last again: what they make is not stored.
    left = x + tl.minimum(i, n - 1)[:, None] * stride
    right = x + tl.minimum(j, n - 1)[:, None] * stride
    k = tl.zeros((BLOCK_N, BLOCK_N), ACC)
    for at in range(begin, end, BLOCK_D):
        columns = at + tl.arange(0, BLOCK_D)
        inside = columns < end
        a = tl.load(left + columns[None, :], mask=inside[None, :], other=0)
        b = tl.load(right + columns[None, :], mask=inside[None, :], other=0)
        if CENTER:
            mean = tl.load(means + before + columns, mask=inside, other=0)
            a = a.to(ACC) - mean[None, :]
            b = b.to(ACC) - mean[None, :]
        k = tl.dot(a.to(DOT), tl.trans(b.to(DOT)), k, input_precision=PRECISION, out_dtype=ACC)
    inside = (i < n)[:, None] & (j < n)[None, :]
    if MIRROR:
        out += layer.to(tl.int64) * n * n
        if row == column:  # symmetric to the bit, whatever order the tensor cores add in
            k = tl.where(i[:, None] >= j[None, :], k, tl.trans(k))
        else:
            mirrored = (j < n)[:, None] & (i < n)[None, :]
            tl.store(out + j[:, None].to(tl.int64) * n + i[None, :], tl.trans(k), mask=mirrored)
    else:
        out += item.to(tl.int64) * n * n
    tl.store(out + i[:, None].to(tl.int64) * n + j[None, :], k, mask=inside)
