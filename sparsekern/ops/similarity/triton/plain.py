"""Triton kernels that hand features to the tensor cores as they are, with no stop in registers.

For GPUs whose tensor cores take both operands from shared memory while the program goes on. What is
taken off a column changes no centred Gram matrix, only its rounding. So means, which only registers
could take off, stay in, and the sums tell afterwards whether that was exact enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .features import last_column, layer_features, locate, store_products, whole_columns

# Energy of the column means over that of what is left, up to which features are not centred. The
# operands' rounding then is at most sqrt(1 + 3) times that of centred ones (none for 16-bit
# features, which are not rounded), and that of the sums 2⁻²² of the diagonal.
OFFSET = tl.constexpr(3.0)
# Columns at a time where means are taken off, for which few registers are left.
CENTRED_BLOCK = tl.constexpr(16)
ZEROS = tl.constexpr(1024)


@triton.jit(do_not_specialize=["count"])
def gram_plain(
    table,
    count,
    partials,  # [pieces, 2 ROWS, 2 ROWS]; lower tiles only
    means,  # [sum of widths]: what was taken off
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
    """Partial Gram matrices of up to 2 ``ROWS`` samples, centred only where that is needed.

    The mean of a Gram matrix's entries is the energy of the column means, its trace all energy: a
    program whose features stand far from zero takes its columns again, centred.
    """
    ACC: tl.constexpr = partials.dtype.element_ty
    item = tl.program_id(0)
    layer, split, _, before = locate(table, count, item, chunk, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    begin = split * chunk
    end = last_column(begin, chunk, width, ALIGNED)
    rows = tl.arange(0, ROWS)
    upper = x + rows[:, None] * stride
    lower = x + (rows[:, None] + ROWS) * stride
    in_upper = (rows < n)[:, None]
    in_lower = (rows + ROWS < n)[:, None]
    k00 = tl.zeros((ROWS, ROWS), ACC)
    k10 = tl.zeros((ROWS, ROWS), ACC)
    k11 = tl.zeros((ROWS, ROWS), ACC)
    # Nothing but loads and products: they run asynchronously, from one copy in shared memory.
    for at in range(begin, end, BLOCK_D):
        columns = at + tl.arange(0, BLOCK_D)
        inside = (columns < end)[None, :]
        a = tl.load(upper + columns[None, :], mask=in_upper & inside, other=0).to(DOT)
        b = tl.load(lower + columns[None, :], mask=in_lower & inside, other=0).to(DOT)
        k00 = tl.dot(a, tl.trans(a), k00, input_precision=PRECISION, out_dtype=ACC)
        k10 = tl.dot(b, tl.trans(a), k10, input_precision=PRECISION, out_dtype=ACC)
        k11 = tl.dot(b, tl.trans(b), k11, input_precision=PRECISION, out_dtype=ACC)
    out = partials + item.to(tl.int64) * (4 * ROWS * ROWS)
    store_products(out, k00, k10, k11, ROWS, True)
    if CENTER:
        means += before
        energy = 0.0
        offset = (tl.sum(k00) + 2 * tl.sum(k10) + tl.sum(k11)) / n
        trace = tl.sum(tl.where(rows[:, None] == rows[None, :], k00 + k11, 0))
        if offset <= OFFSET * (trace - offset):
            for at in range(begin, end, ZEROS):
                columns = at + tl.arange(0, ZEROS)
                tl.store(means + columns, tl.zeros((ZEROS,), ACC), mask=columns < end)
        else:  # also where a sum is not finite
            tl.debug_barrier()  # the same entries are written again, perhaps by other threads
            k00 = tl.zeros((ROWS, ROWS), ACC)
            k10 = tl.zeros((ROWS, ROWS), ACC)
            k11 = tl.zeros((ROWS, ROWS), ACC)
            k00, k10, k11, energy = whole_columns(
                x, stride, means, n, begin, end, k00, k10, k11, DOT, PRECISION, True, ROWS, True,
                CENTRED_BLOCK, 2,
            )  # fmt: skip
            store_products(out, k00, k10, k11, ROWS, True)
        tl.store(squares + item, tl.full((), 0, tl.float64) + energy)


@triton.jit
def wide_tile(index, tiles, whole):
    """Row and column of a tile that is twice as wide as high, in and below the diagonal.

    The first ``whole`` have nothing above the diagonal but what is in a square on it; of the
    others, one for each column, the left half is enough. In bands of 8 rows, walked column by
    column: 16 b² tiles come before band b.
    """
    band = (tl.sqrt(index.to(tl.float64)) * 0.25).to(tl.int32)
    band = tl.where(16 * band * band > index, band - 1, band)
    band = tl.where(16 * (band + 1) * (band + 1) <= index, band + 1, band)
    height = tl.minimum(8, tiles - 8 * band)
    at = index - 16 * band * band
    square = 4 * band * height  # tiles left of the band's own triangle
    inner = tl.maximum(at - square, 0)
    # Row i of it has (i + 1) // 2 tiles, and i² // 4 come before.
    row = 1 + (inner >= 1).to(tl.int32) + (inner >= 2).to(tl.int32) + (inner >= 4).to(tl.int32)
    row += (inner >= 6).to(tl.int32) + (inner >= 9).to(tl.int32) + (inner >= 12).to(tl.int32)
    column = 4 * band + inner - row * row // 4
    row = 8 * band + tl.where(at < square, at % height, row)
    column = tl.where(at < square, at // height, column)
    row = tl.where(index < whole, row, 2 * (index - whole))
    return row, tl.where(index < whole, column, index - whole)


@triton.jit
def mirrored_tile(
    x,
    stride,
    width,
    out,
    n,
    row,
    column,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Products of samples from ``row`` and from ``column`` on, stored on both sides."""
    i = row + tl.arange(0, HEIGHT)
    j = column + tl.arange(0, WIDTH)
    # Samples past the last are the last again: what they make is not stored.
    left = x + tl.minimum(i, n - 1)[:, None] * stride
    right = x + tl.minimum(j, n - 1)[:, None] * stride
    k = tl.zeros((HEIGHT, WIDTH), ACC)
    for at in range(0, width, BLOCK_D):
        columns = at + tl.arange(0, BLOCK_D)
        inside = (columns < width)[None, :]
        a = tl.load(left + columns[None, :], mask=inside, other=0).to(DOT)
        b = tl.load(right + columns[None, :], mask=inside, other=0).to(DOT)
        k = tl.dot(a, tl.trans(b), k, input_precision=PRECISION, out_dtype=ACC)
    # Each entry is stored once: symmetric to the bit, whatever order the tensor cores add in.
    valid = (i < n)[:, None]
    i = i.to(tl.int64)
    j = j.to(tl.int64)
    tl.store(out + i[:, None] * n + j[None, :], k, mask=valid & (j[None, :] <= i[:, None]))
    mirrored = valid & (j[None, :] < i[:, None])
    tl.store(out + j[:, None] * n + i[None, :], tl.trans(k), mask=tl.trans(mirrored))


@triton.jit(do_not_specialize=["count", "tiles", "whole"])
def gram_mirrored(
    table,
    count,
    out,  # [count, n, n]
    n,
    tiles,  # a side, of BLOCK_N samples
    whole,  # tiles of one Gram matrix that are not halves
    DTYPE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Whole Gram matrices of many samples, not centred, by tiles of BLOCK_N x 2 BLOCK_N.

    A wide tile takes 1.5 times less from the L2 cache for its products than two square ones. The
    halves come last, where they fill what the last round of programs leaves.
    """
    ACC: tl.constexpr = out.dtype.element_ty
    each = whole + (tiles + 1) // 2
    layer = tl.program_id(0) // each
    index = tl.program_id(0) % each
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    row, column = wide_tile(index, tiles, whole)
    row *= BLOCK_N
    column *= 2 * BLOCK_N
    out += layer.to(tl.int64) * n * n
    if index < whole:
        mirrored_tile(
            x, stride, width, out, n, row, column, ACC, DOT, PRECISION, BLOCK_N, 2 * BLOCK_N,
            BLOCK_D,
        )  # fmt: skip
    else:
        mirrored_tile(
            x, stride, width, out, n, row, column, ACC, DOT, PRECISION, BLOCK_N, BLOCK_N, BLOCK_D
        )
