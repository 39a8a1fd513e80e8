"""Triton kernels of the backward pass: weights, gradients of Gram matrices, gradients of features.

With v_l the centred Gram matrices, every loss here has d loss / d K_l = Σ_m w[l, m] v_m, which is
centred already; the kernel function's derivative turns it into a matrix P_l with
``d loss / d X_l = P_l X_l`` (``2 d loss / d K_l`` for a linear kernel).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entries import (
    CKA,
    COSINE,
    LINEAR,
    MEDIAN,
    NORM,
    POLYNOMIAL,
    RBF,
    SCALE,
    STATS,
    VARIANCE,
    centred_block,
    hsic_divisor,
    inverse_norm,
    power,
    rbf_slope,
    rbf_variance,
    strip_sums,
    wide,
)
from .features import layer_features, locate


@triton.jit(do_not_specialize=["count", "first", "n"])
def pair_weights(
    grad,  # as the forward result
    inner,  # [count, count]
    stats,
    table,
    weights,  # [count, count]
    count,
    first,
    n,
    CENTRING: tl.constexpr,
    QUANTITY: tl.constexpr,
    GROUPS: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row l of the weights w. CKA: ``g / (‖v_l‖ ‖v_m‖)``, less ``Σ_m g CKA / ‖v_l‖²`` for m = l.

    The scale of the kept Gram matrices, which divides v_m, is in the weights. Degenerate layers
    have none.
    """
    layer = tl.program_id(0).to(tl.int64)
    columns = count - first
    norm = tl.load(stats + layer * STATS + NORM)
    scale = tl.load(stats + layer * STATS + SCALE)
    own = tl.zeros((BLOCK,), tl.float64)
    for at in range(0, count, BLOCK):
        m = (at + tl.arange(0, BLOCK)).to(tl.int64)
        known = m < count
        if GROUPS:
            upstream = tl.load(grad).to(tl.float64)
            if MEAN:
                both = upstream / tl.maximum(count * (count - 1) // 2, 1) + tl.zeros(
                    (BLOCK,), tl.float64
                )
            else:
                group = tl.load(table + 4 * count + layer)
                others = tl.load(table + 4 * count + m, mask=known, other=-1)
                both = tl.where(group == others, 2 * upstream, 0)
        else:  # d loss / d entry (l, m) and (m, l), where they are in the result
            end = tl.where(first > 0, first, count)
            mine = layer + tl.zeros_like(m)
            row_known = known & (mine < end) & (m >= first)
            column_known = known & (m < end) & (mine >= first)
            forth = tl.load(grad + layer * columns + m - first, mask=row_known, other=0)
            back = tl.load(grad + m * columns + layer - first, mask=column_known, other=0)
            both = forth.to(tl.float64) + back.to(tl.float64)
        other_norm = tl.load(stats + m * STATS + NORM, mask=known, other=0)
        other_scale = tl.load(stats + m * STATS + SCALE, mask=known, other=1)
        if QUANTITY == CKA:
            norms = norm * other_norm
            counted = known & (m != layer) & (norms != 0)
            weight = tl.where(counted, both / tl.where(norms == 0, 1, norms) / scale, 0)
            product = tl.load(inner + layer * count + m, mask=known, other=0)
            own += tl.where(counted, weight * product, 0)
        else:
            weight = both * other_scale / hsic_divisor(n, CENTRING)
        here = known & (m != layer) if QUANTITY == CKA else known
        tl.store(weights + layer * count + m, weight.to(weights.dtype.element_ty), mask=here)
    if QUANTITY == CKA:
        square = tl.where(norm == 0, 1, norm * norm)
        diagonal = -tl.sum(own, 0) / square
        tl.store(weights + layer * (count + 1), diagonal.to(weights.dtype.element_ty))


@triton.jit(do_not_specialize=["count", "strips"])
def combine_row(
    source,  # [count, n, n] Gram matrices, or the upstream gradient of one
    weights,  # [count, count]
    products,  # [count, n, n]
    stats,
    row_sums,  # of the source
    parts,
    operand,  # [count, n, n]: P
    through,  # [count, n]: d loss / d variance by row (RBF)
    found,  # [count, 2]: index of an entry equal to each middle distance (RBF with a median)
    count,
    n,
    strips,
    SOURCE: tl.constexpr,
    SCALED: tl.constexpr,
    KIND: tl.constexpr,
    C: tl.constexpr,
    DEGREE: tl.constexpr,
    CENTRING: tl.constexpr,
    FIND: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Row i of P for some layers: Σ_m w[l, m] v_m, times the derivative of the kernel function."""
    ACC: tl.constexpr = operand.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    own = (tl.program_id(1) * LAYERS + tl.arange(0, LAYERS)).to(tl.int64)
    known = own < count
    at_own = own[:, None] * n * n
    sums = tl.zeros((LAYERS,), tl.float64)
    diagonal = tl.zeros((LAYERS,), ACC)
    flow = tl.zeros((LAYERS,), tl.float64)
    if KIND == COSINE:
        inverse_i = inverse_norm(tl.load(products + own * n * n + i * (n + 1), mask=known, other=0))
    if KIND == RBF:
        variance = tl.load(stats + own * STATS + VARIANCE, mask=known, other=1)
        slope, narrow = rbf_slope(variance, ACC)
    for at in range(0, n, BLOCK_E):
        j = (at + tl.arange(0, BLOCK_E)).to(tl.int64)[None, :]
        grad = tl.zeros((LAYERS, BLOCK_E), ACC)
        for m0 in range(0, count, LAYERS):
            m = (m0 + tl.arange(0, LAYERS)).to(tl.int64)
            there = m < count
            total = strip_sums(parts, m, there, strips, 0, BLOCK_S)
            scale = tl.full((LAYERS,), 1, tl.float64)
            if SCALED:
                scale = tl.load(stats + m * STATS + SCALE, mask=there, other=1)
            v = centred_block(
                source, row_sums, m[:, None], rbf_variance(stats, m, there, SOURCE), total, scale,
                i + tl.zeros_like(j), j, there[:, None] & (j < n), n,
                SOURCE, C, DEGREE, CENTRING,
            )  # fmt: skip
            both = known[:, None] & there[None, :]
            w = tl.load(weights + own[:, None] * count + m[None, :], mask=both, other=0).to(ACC)
            grad = tl.dot(w, v.to(ACC), grad, input_precision="ieee", out_dtype=ACC)
        mask = known[:, None] & (j < n)
        place = at_own + i * n + j
        if KIND == LINEAR:
            grad = 2 * grad
        else:
            p = tl.load(products + place, mask=mask, other=0)
            if KIND == POLYNOMIAL:
                grad = 2 * DEGREE * grad * power(p + tl.full((), C, ACC), DEGREE - 1)
            if KIND == COSINE:
                at_j = own[:, None] * n * n + j * (n + 1)
                inverse_j = inverse_norm(tl.load(products + at_j, mask=mask, other=0))
                grad = 2 * grad * inverse_i[:, None] * inverse_j
                sums += tl.sum(tl.where(mask, grad * p, 0).to(tl.float64), 1)
            if KIND == RBF:
                value = tl.exp(p * slope[:, None]) * slope[:, None]
                grad = tl.where(narrow[:, None], 0, grad * value)
                wide = tl.where(mask, grad, 0).to(tl.float64)
                sums += tl.sum(wide, 1)
                flow -= tl.sum(wide * p.to(tl.float64), 1)
                if FIND:
                    for which in tl.static_range(2):
                        middle = tl.load(stats + own * STATS + MEDIAN + which, mask=known, other=0)
                        hit = mask & (j < i) & (p.to(tl.float64) == middle[:, None])
                        place_found = tl.where(hit, i * n + j, 0x7FFFFFFFFFFFFFFF)
                        tl.atomic_min(
                            found + own * 2 + which,
                            tl.min(place_found, 1),
                            mask=known & (tl.max(hit.to(tl.int32), 1) > 0),
                            sem="relaxed",
                        )
                grad = -4 * grad
            # The diagonal also gets a share of its whole row: below, once that is known.
            diagonal += tl.sum(tl.where(mask & (j == i), grad, 0), 1)
            if KIND == COSINE or KIND == RBF:
                mask = mask & (j != i)
        tl.store(operand + place, grad, mask=mask)
    if KIND == COSINE:
        diagonal -= (sums * inverse_i.to(tl.float64) * inverse_i.to(tl.float64)).to(ACC)
    if KIND == RBF:  # P = 4 (diag(W 1) - W)
        diagonal += (4 * sums).to(ACC)
        tl.store(through + own * n + i, flow, mask=known)
    if KIND == COSINE or KIND == RBF:
        tl.store(operand + own * n * n + i * (n + 1), diagonal, mask=known)


@triton.jit
def add_median_gradient(
    operand, stats, through, found, n, FRACTION: tl.constexpr, BLOCK_E: tl.constexpr
):
    """The gradient's way through the median: to one pair of samples for each middle distance."""
    ACC: tl.constexpr = operand.dtype.element_ty
    layer = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK_E,), tl.float64)
    for at in range(0, n, BLOCK_E):
        i = at + tl.arange(0, BLOCK_E)
        total += tl.load(through + layer * n + i, mask=i < n, other=0)
    variance = tl.load(stats + layer * STATS + VARIANCE)
    _, narrow = rbf_slope(variance, ACC)
    # variance = fraction² (m0 + m1) / 2; an entry and its mirror share what is theirs.
    share = tl.sum(total, 0) / tl.where(narrow, 1, variance) * FRACTION * FRACTION / 4
    change = tl.where(narrow, 0, 4 * share).to(ACC)
    at = operand + layer * n * n
    for which in tl.static_range(2):
        middle = tl.load(stats + layer * STATS + MEDIAN + which)
        place = tl.load(found + layer * 2 + which)
        if (middle > 0) & (place < wide(n) * n):
            i = place // n
            j = place % n
            # Four entries that differ, for j < i: they can be changed at once.
            corner = tl.arange(0, 4)
            row = tl.where(corner < 2, i, j)
            column = tl.where(corner % 2 == 0, row, i + j - row)
            where = at + row * n + column
            entry = tl.load(where) + tl.where(row == column, change, -change)
            tl.debug_barrier()
            tl.store(where, entry)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["count"])
def product_few(
    table,
    count,
    operand,
    n,
    DTYPE: tl.constexpr,
    CENTER: tl.constexpr,
    ALIGNED: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``P X`` for very few samples: a column's samples in registers, read once, written once."""
    ACC: tl.constexpr = operand.dtype.element_ty
    layer, split, _, _ = locate(table, count, tl.program_id(0), BLOCK_D, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    address = tl.load(table + 3 * count + layer)
    out = address.to(tl.pointer_type(DTYPE))
    columns = split * BLOCK_D + tl.arange(0, BLOCK_D)
    end = tl.where(address != 0, width, 0)
    if ALIGNED:
        out = tl.multiple_of(out, 16)
        end = tl.multiple_of(end, 16)
    inside = columns < end
    rows = tl.arange(0, ROWS)
    mean = tl.zeros((BLOCK_D,), ACC)
    if CENTER:
        for k in tl.static_range(ROWS):
            there = inside & (tl.full((BLOCK_D,), k, tl.int32) < n)
            mean += tl.load(x + k * stride + columns, mask=there, other=0).to(ACC)
        mean = mean / n
    at = operand + layer.to(tl.int64) * n * n
    product = tl.zeros((ROWS, BLOCK_D), ACC)
    for k in tl.static_range(ROWS):
        there = inside & (tl.full((BLOCK_D,), k, tl.int32) < n)
        sample = tl.load(x + k * stride + columns, mask=there, other=0).to(ACC)
        there = (rows < n) & (tl.full((ROWS,), k, tl.int32) < n)
        p = tl.load(at + k * n + rows, mask=there, other=0)  # P is symmetric
        product += p[:, None] * (sample - mean)[None, :]
    place = out + rows[:, None] * width + columns[None, :]
    tl.store(place, product.to(DTYPE), mask=(rows < n)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["count", "row_blocks"])
def product_tiles(
    table,
    count,
    operand,
    means,
    n,
    row_blocks,
    DTYPE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    ALIGNED: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``P X`` of all layers: a block of samples by a block of columns per program.

    The blocks of samples of the same columns are neighbours, so that the columns stay in the cache.
    """
    ACC: tl.constexpr = operand.dtype.element_ty
    item = tl.program_id(0) // row_blocks
    layer, split, _, before = locate(table, count, item, BLOCK_D, COUNT)
    x, width, stride = layer_features(table, count, layer, DTYPE, ALIGNED)
    address = tl.load(table + 3 * count + layer)
    out = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        out = tl.multiple_of(out, 16)
        width = tl.multiple_of(width, 16)
    rows = (tl.program_id(0) % row_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = split * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < tl.where(address != 0, width, 0)
    at = operand + layer.to(tl.int64) * n * n + rows[:, None].to(tl.int64) * n
    if CENTER:
        mean = tl.load(means + before + columns, mask=inside, other=0)
    product = tl.zeros((BLOCK_N, BLOCK_D), ACC)
    needed = tl.where(address != 0, n, 0)
    for k0 in range(0, needed, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        p = tl.load(at + k[None, :], mask=(rows < n)[:, None] & (k < n)[None, :], other=0)
        source = x + k[:, None] * stride + columns[None, :]
        sample = tl.load(source, mask=(k < n)[:, None] & inside[None, :], other=0).to(ACC)
        if CENTER:  # where P is 0 for k >= n
            sample -= mean[None, :]
        product = tl.dot(
            p.to(DOT), sample.to(DOT), product, input_precision=PRECISION, out_dtype=ACC
        )
    place = out + rows[:, None].to(tl.int64) * width + columns[None, :]
    tl.store(place, product.to(DTYPE), mask=(rows < n)[:, None] & inside[None, :])
