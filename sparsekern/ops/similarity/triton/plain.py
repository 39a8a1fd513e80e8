"""The Triton kernel for two tiles of samples on tensor cores that round: features as they are.

What is taken off a column changes no centred Gram matrix, only its rounding. So features go from
memory to the tensor cores without a stop in registers, where their means would be taken off, and
the sums tell afterwards whether that was exact enough.
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
