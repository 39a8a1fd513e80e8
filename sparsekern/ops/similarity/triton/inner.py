"""Triton kernels of the inner products of all pairs of layers, and of what is asked for of them."""

from __future__ import annotations

import triton
import triton.language as tl

from .entries import (
    CKA,
    LINEAR,
    NOISE_UNITS,
    NORM,
    RBF,
    SCALE,
    STATS,
    centred_block,
    hsic_divisor,
    rbf_variance,
    scale_of,
    strip_sums,
    wide,
)


@triton.jit(do_not_specialize=["count", "squares_width", "strips", "programs", "first"])
def inner_products(
    table,
    count,
    products,
    stats,
    row_sums,
    parts,
    squares,
    squares_width,
    pieces,  # [programs, count, count]: what each program found
    arrived,  # how many programs have finished: 0 before the launch
    inner,  # [count, count]
    out,
    n,
    strips,
    programs,
    first,
    UNIT: tl.constexpr,
    DOT_UNIT: tl.constexpr,
    INPUT_UNIT: tl.constexpr,
    KIND: tl.constexpr,
    C: tl.constexpr,
    DEGREE: tl.constexpr,
    CENTRING: tl.constexpr,
    QUANTITY: tl.constexpr,
    GROUPS: tl.constexpr,
    MEAN: tl.constexpr,
    COUNT: tl.constexpr,
    LAYERS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Inner products of all pairs of centred Gram matrices, and what the user asked for of them.

    Programs share the entries; the last one to finish adds up and writes the result, always in
    the same order. No program waits for another.
    """
    ACC: tl.constexpr = products.dtype.element_ty
    a = (tl.program_id(1) * LAYERS + tl.arange(0, LAYERS)).to(tl.int64)
    b = (tl.program_id(2) * LAYERS + tl.arange(0, LAYERS)).to(tl.int64)
    if tl.program_id(2) <= tl.program_id(1):
        total_a = strip_sums(parts, a, a < count, strips, 0, BLOCK_S)
        total_b = strip_sums(parts, b, b < count, strips, 0, BLOCK_S)
        scale_a = layer_scale(parts, a, a < count, strips, n, KIND, BLOCK_S)
        scale_b = layer_scale(parts, b, b < count, strips, n, KIND, BLOCK_S)
        variance_a = rbf_variance(stats, a, a < count, KIND)
        variance_b = rbf_variance(stats, b, b < count, KIND)
        found = tl.zeros((LAYERS, LAYERS), tl.float64)
        entries = wide(n) * n
        step = wide(programs) * BLOCK_E
        for at in range(tl.program_id(0).to(tl.int64) * BLOCK_E, entries, step):
            entry = (at + tl.arange(0, BLOCK_E))[None, :]
            i = entry // n
            j = entry % n
            in_a = (a < count)[:, None] & (entry < entries)
            in_b = (b < count)[:, None] & (entry < entries)
            x = centred_block(
                products, row_sums, a[:, None], variance_a, total_a, scale_a, i, j, in_a, n,
                KIND, C, DEGREE, CENTRING,
            )  # fmt: skip
            if ONE_BLOCK:
                y = x
            else:
                y = centred_block(
                    products, row_sums, b[:, None], variance_b, total_b, scale_b, i, j, in_b, n,
                    KIND, C, DEGREE, CENTRING,
                )  # fmt: skip
            product = tl.dot(x, tl.trans(y), input_precision="ieee", out_dtype=ACC)
            found += product.to(tl.float64)
        mine = pieces + tl.program_id(0).to(tl.int64) * count * count
        inside = (a < count)[:, None] & (b < count)[None, :]
        tl.store(mine + a[:, None] * count + b[None, :], found, mask=inside)
    # Every thread's stores, then the count: whoever sees it complete sees them all.
    tl.debug_barrier()
    others = tl.atomic_add(arrived, tl.full((), 1, tl.int64), sem="acq_rel", scope="gpu")
    if others == programs * tl.num_programs(1) * tl.num_programs(2) - 1:
        finish(
            table, count, parts, squares, squares_width, pieces, inner, stats, out, n, strips,
            programs, first, UNIT, DOT_UNIT, INPUT_UNIT, KIND, CENTRING, QUANTITY, GROUPS, MEAN,
            COUNT, LAYERS, BLOCK_P, BLOCK_S,
        )  # fmt: skip


@triton.jit
def layer_scale(parts, layer, mask, strips, n, KIND: tl.constexpr, BLOCK_S: tl.constexpr):
    """The power of two that a layer's Gram matrix is divided by; 1 for RBF, whose entries are."""
    if KIND == RBF:
        scale = tl.full(layer.shape, 1, tl.float64)
    else:
        scale = scale_of(strip_sums(parts, layer, mask, strips, 1, BLOCK_S), n)
    return scale


@triton.jit
def pieces_sum(pieces, at, mask, programs, area, BLOCK_P: tl.constexpr):
    """Sums entries ``at`` (flat) over what all programs found."""
    total = tl.zeros(at.shape, tl.float64)
    for p in range(0, programs, BLOCK_P):
        program = p + tl.arange(0, BLOCK_P)
        inside = (program < programs)[:, None] & mask[None, :]
        where = program.to(tl.int64)[:, None] * area + at[None, :]
        total += tl.sum(tl.load(pieces + where, mask=inside, other=0, cache_modifier=".cg"), 0)
    return total


@triton.jit
def noise_level(
    table,
    count,
    layer,
    trace,
    squares,
    squares_width,
    n,
    UNIT: tl.constexpr,
    DOT_UNIT: tl.constexpr,
    INPUT_UNIT: tl.constexpr,
    KIND: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The norm that rounding alone could give a centred Gram matrix.

    Of the sums that made it (relative to its trace, or to its norm for RBF), of the operands of
    the tensor cores, and of the features themselves, whose errors are independent and so shrink
    with the square root of their number.
    """
    if KIND == RBF:
        level = NOISE_UNITS * UNIT * tl.sqrt(trace)
    else:
        level = NOISE_UNITS * UNIT * trace
    if KIND == LINEAR:
        width = tl.load(table + count + layer, mask=layer < count, other=0)
        each = (width + squares_width - 1) // squares_width
        layers = tl.arange(0, COUNT)
        widths = tl.load(table + count + layers, mask=layers < count, other=0)
        all_pieces = (widths + squares_width - 1) // squares_width
        earlier = layers[None, :] < layer[:, None]
        begin = tl.sum(tl.where(earlier, all_pieces[None, :], 0), 1)
        means = tl.zeros(layer.shape, tl.float64)
        for at in range(0, tl.max(each, 0), BLOCK_S):
            piece = at + tl.arange(0, BLOCK_S)
            inside = piece[None, :] < each[:, None]
            means += tl.sum(
                tl.load(squares + begin[:, None] + piece[None, :], mask=inside, other=0), 1
            )
        root = tl.sqrt(tl.maximum(width, 1).to(tl.float64))
        energy = trace + n * means
        spread = DOT_UNIT * trace + INPUT_UNIT * INPUT_UNIT * energy
        level += tl.where(width > 0, NOISE_UNITS * spread / root, 0)
    return level


@triton.jit
def finish(
    table,
    count,
    parts,
    squares,
    squares_width,
    pieces,
    inner,
    stats,
    out,
    n,
    strips,
    programs,
    first,
    UNIT: tl.constexpr,
    DOT_UNIT: tl.constexpr,
    INPUT_UNIT: tl.constexpr,
    KIND: tl.constexpr,
    CENTRING: tl.constexpr,
    QUANTITY: tl.constexpr,
    GROUPS: tl.constexpr,
    MEAN: tl.constexpr,
    COUNT: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Norms, degenerate layers, and HSIC, CKA or sums of CKA, by one program."""
    area = wide(count) * count
    for at in range(0, count, LAYERS):
        layer = (at + tl.arange(0, LAYERS)).to(tl.int64)
        known = layer < count
        own = pieces_sum(pieces, layer * (count + 1), known, programs, area, BLOCK_P)
        scale = layer_scale(parts, layer, known, strips, n, KIND, BLOCK_S)
        trace = strip_sums(parts, layer, known, strips, 1, BLOCK_S)
        noise = noise_level(
            table, count, layer, trace, squares, squares_width, n, UNIT, DOT_UNIT, INPUT_UNIT,
            KIND, COUNT, BLOCK_S,
        )  # fmt: skip
        norm = tl.sqrt(own)
        norm = tl.where(norm * scale <= noise, 0, norm)  # NaN is not: it goes through
        tl.store(stats + layer * STATS + SCALE, scale, mask=known)
        tl.store(stats + layer * STATS + NORM, norm, mask=known)
    tl.debug_barrier()
    summed = tl.zeros((LAYERS * LAYERS,), tl.float64)
    flat = tl.arange(0, LAYERS * LAYERS).to(tl.int64)
    for at in range(0, count, LAYERS):
        for other in range(0, count, LAYERS):
            i = at + flat // LAYERS
            j = other + flat % LAYERS
            known = (i < count) & (j < count)
            where = tl.maximum(i, j) * count + tl.minimum(i, j)
            product = pieces_sum(pieces, where, known, programs, area, BLOCK_P)
            norm_i = tl.load(stats + i * STATS + NORM, mask=known, other=0)
            norm_j = tl.load(stats + j * STATS + NORM, mask=known, other=0)
            product = tl.where(i == j, norm_i * norm_i, product) if QUANTITY == CKA else product
            tl.store(inner + i * count + j, product, mask=known)
            if QUANTITY == CKA:
                # Not 0 where either norm is NaN: a layer that is not finite must show.
                norms = norm_i * norm_j
                value = tl.where(norms == 0, 0, product / tl.where(norms == 0, 1, norms))
            else:
                scale_i = tl.load(stats + i * STATS + SCALE, mask=known, other=0)
                scale_j = tl.load(stats + j * STATS + SCALE, mask=known, other=0)
                value = product * scale_i * scale_j / hsic_divisor(n, CENTRING)
            if GROUPS:
                group_i = tl.load(table + 3 * count + i, mask=known, other=0)
                group_j = tl.load(table + 3 * count + j, mask=known, other=0)
                counted = known & (i < j) if MEAN else known & (group_i == group_j)
                summed += tl.where(counted, value, 0)
            else:
                columns = count - first
                last_row = tl.where(first > 0, first, count)
                chosen = known & (i < last_row) & (j >= first)
                place = out + i * columns + (j - first)
                tl.store(place, value.to(out.dtype.element_ty), mask=chosen)
    if GROUPS:
        result = tl.sum(summed, 0)
        if MEAN:
            pairs = count * (count - 1) // 2
            result = result / tl.maximum(pairs, 1)
            if pairs == 0:
                result += 0 * tl.load(stats + NORM)  # no pair: 0, or NaN from NaN
        tl.store(out, result.to(out.dtype.element_ty))
