"""Triton kernels over Gram matrices: adding parts up, kernel functions, centring, inner products.

``products`` holds per layer what the kernel function is made from: x_i·x_j, or for RBF the squared
distances. Values of the kernel and their centring are made on the fly wherever they are needed.
Sums across programs are float64 and in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

LINEAR = tl.constexpr(0)
RBF = tl.constexpr(1)
POLYNOMIAL = tl.constexpr(2)
COSINE = tl.constexpr(3)
NO_CENTRING = tl.constexpr(0)
U_CENTRING = tl.constexpr(2)
CKA = tl.constexpr(1)
# Per layer: scale of the kept Gram matrix, its norm (0: degenerate), the RBF variance, the two
# middle squared distances.
STATS = tl.constexpr(8)
SCALE = tl.constexpr(0)
NORM = tl.constexpr(1)
VARIANCE = tl.constexpr(2)
MEDIAN = tl.constexpr(3)
# How many rounding units of its own making a centred Gram's norm must exceed to be told from 0.
NOISE_UNITS = tl.constexpr(4.0)


@triton.jit
def wide(value):
    """An integer argument as a 64-bit number, also where the compiler made a constant of it."""
    return tl.full((), 0, tl.int64) + value


@triton.jit
def hsic_divisor(n, CENTRING: tl.constexpr):
    """What divides the inner product of centred Gram matrices to make it HSIC."""
    samples = wide(n)
    if CENTRING == U_CENTRING:
        divisor = samples * (samples - 3)
    else:
        divisor = (samples - 1) * (samples - 1)
    return divisor.to(tl.float64)


@triton.jit
def power(base, EXPONENT: tl.constexpr):
    """``base ** EXPONENT`` by repeated squaring."""
    result = tl.full(base.shape, 1, base.dtype)
    for bit in tl.static_range(10):  # degrees are at most 1000
        if (EXPONENT >> bit) % 2 == 1:
            result = result * base
        if (EXPONENT >> bit) > 1:
            base = base * base
    return result


@triton.jit
def rbf_slope(variance, ACC: tl.constexpr):
    """``-1 / (2 σ²)``, and whether the kernel is so narrow that only equal samples are similar."""
    slope = (-0.5 / tl.where(variance == 0, 1.0, variance)).to(ACC)
    narrow = (variance == 0) | (slope == float("-inf"))
    return tl.where(narrow, 0, slope), narrow


@triton.jit
def inverse_norm(square):
    """``1 / sqrt(square)``, or 0 for a sample of zeros."""
    return tl.where(square == 0, 0, 1 / tl.sqrt(tl.where(square == 0, 1, square)))


@triton.jit
def kernel_value(
    p, own, other, variance, KIND: tl.constexpr, C: tl.constexpr, DEGREE: tl.constexpr
):
    """The kernel function of ``p``; ``own``, ``other``: each sample's product with itself."""
    if KIND == RBF:
        slope, narrow = rbf_slope(variance, p.dtype)
        sharp = tl.where(p > 0, 0, 1 + p)  # NaN stays
        value = tl.where(narrow, sharp, tl.exp(p * slope))
    elif KIND == POLYNOMIAL:
        value = power(p + tl.full((), C, p.dtype), DEGREE)
    elif KIND == COSINE:
        value = p * inverse_norm(own) * inverse_norm(other)
    else:
        value = p
    return value


@triton.jit
def rbf_variance(stats, layer, mask, KIND: tl.constexpr):
    """σ² of layers; 1 for other kernels."""
    variance = tl.full(layer.shape, 1, tl.float64)
    if KIND == RBF:
        variance = tl.load(stats + layer * STATS + VARIANCE, mask=mask, other=1)
    return variance


@triton.jit
def entry_values(
    products,
    variance,
    layer,
    i,
    j,
    mask,
    n,
    KIND: tl.constexpr,
    C: tl.constexpr,
    DEGREE: tl.constexpr,
):
    """Kernel values at entries (i, j) of layers; the indices are 64-bit and broadcast."""
    at = products + layer * n * n
    p = tl.load(at + i * n + j, mask=mask, other=0)
    own = 0.0
    other = 0.0
    if KIND == COSINE:
        own = tl.load(at + (i + tl.zeros_like(j)) * (n + 1), mask=mask, other=0)
        other = tl.load(at + j * (n + 1), mask=mask, other=0)
    return kernel_value(p, own, other, variance, KIND, C, DEGREE)


@triton.jit
def centred(value, i, j, row_i, row_j, total, n, CENTRING: tl.constexpr):
    """U- or double-centring of entries from sums of rows (diagonal left out for U), in float64."""
    if CENTRING == NO_CENTRING:
        result = value
    else:
        # One division for all entries: one of float64 takes as long as twenty multiplications.
        samples = wide(n).to(tl.float64)
        if CENTRING == U_CENTRING:
            own = 1 / (samples - 2)
            every = own / (samples - 1)
        else:
            own = 1 / samples
            every = own * own
        shift = (row_i + row_j) * own - total * every
        result = value - shift.to(value.dtype)
        if CENTRING == U_CENTRING:
            result = tl.where(i == j, 0, result)
    return result


@triton.jit
def strip_sums(parts, layer, mask, strips, WHICH: tl.constexpr, BLOCK_S: tl.constexpr):
    """Sums over all strips of what reduce_rows left per strip, the same bits in every program."""
    total = tl.zeros(layer.shape, tl.float64)
    for at in range(0, strips, BLOCK_S):
        strip = at + tl.arange(0, BLOCK_S)
        inside = mask[:, None] & (strip < strips)[None, :]
        where = (layer[:, None] * strips + strip[None, :]) * 2 + WHICH
        total += tl.sum(tl.load(parts + where, mask=inside, other=0), 1)
    # Triton 3.6 does not compile a loop's sum that is used more than once: here it is used once.
    return total + 0.0


@triton.jit
def scale_of(trace, n):
    """The power of two at the mean of the diagonal: Gram matrices are kept near 1."""
    mean = trace / n
    usable = (mean > 0) & (mean < float("inf"))
    bits = tl.where(usable, mean, 1.0).to(tl.int64, bitcast=True) & 0x7FF0000000000000
    scale = bits.to(tl.float64, bitcast=True)
    return tl.where(scale > 0, scale, 1.0)


@triton.jit
def split_sum(partials, first, splits, at, mask, area, BLOCK_S: tl.constexpr):
    """Sums entries ``at`` of a layer's parts, in float64."""
    total = tl.zeros(at.shape, tl.float64)
    for s in range(0, splits, BLOCK_S):
        split = s + tl.arange(0, BLOCK_S)
        inside = (split < splits)[:, None] & mask[None, :]
        where = (first + split)[:, None] * area + at[None, :]
        total += tl.sum(tl.load(partials + where, mask=inside, other=0).to(tl.float64), 0)
    return total


@triton.jit(do_not_specialize=["count", "strips", "chunk"])
def reduce_rows(
    table,
    count,
    partials,  # [pieces, ld, ld], lower tiles
    products,  # [count, n, n]
    stats,
    row_sums,  # [count, n]
    parts,  # [count, strips, 2]: sums of row_sums; trace, or for RBF the squared norm
    n,
    ld,
    chunk,
    strips,
    KIND: tl.constexpr,
    C: tl.constexpr,
    DEGREE: tl.constexpr,
    CENTRING: tl.constexpr,
    FROM_PARTS: tl.constexpr,
    SUMS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """A strip of rows of one layer: entries from their parts, and sums that centring needs."""
    ACC: tl.constexpr = products.dtype.element_ty
    AREA: tl.constexpr = BLOCK_R * BLOCK_C
    strip = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    if FROM_PARTS:
        layers = tl.arange(0, COUNT)
        widths = tl.load(table + count + layers, mask=layers < count, other=0)
        pieces = (widths + chunk - 1) // chunk
        first = tl.sum(tl.where(layers < layer, pieces, 0), 0)
        splits = tl.sum(tl.where(layers == layer, pieces, 0), 0)
    area = wide(ld) * ld
    entry = tl.arange(0, AREA)
    i = (strip * BLOCK_R + entry // BLOCK_C).to(tl.int64)
    sums = tl.zeros((BLOCK_R,), tl.float64)
    weight = tl.zeros((BLOCK_R,), tl.float64)
    variance = 1.0
    if KIND == RBF and SUMS:
        variance = tl.load(stats + layer * STATS + VARIANCE)
    if FROM_PARTS and (KIND == RBF or KIND == COSINE):
        own = split_sum(partials, first, splits, i * (ld + 1), i < n, area, BLOCK_S).to(ACC)
    for at in range(0, n, BLOCK_C):
        j = at + (entry % BLOCK_C).to(tl.int64)
        mask = (i < n) & (j < n)
        if FROM_PARTS:
            where = tl.maximum(i, j) * ld + tl.minimum(i, j)
            p = split_sum(partials, first, splits, where, mask, area, BLOCK_S).to(ACC)
            if KIND == RBF or KIND == COSINE:
                other = split_sum(partials, first, splits, j * (ld + 1), mask, area, BLOCK_S).to(
                    ACC
                )
            if KIND == RBF:
                distance = own + other - 2 * p
                distance = tl.where(distance < 0, 0, distance)  # NaN is not below 0
                p = tl.where(i == j, distance - distance, distance)
            tl.store(products + layer * n * n + i * n + j, p, mask=mask)
            if SUMS:
                if KIND == RBF or KIND == COSINE:
                    value = kernel_value(p, own, other, variance, KIND, C, DEGREE)
                else:
                    value = kernel_value(p, 0.0, 0.0, variance, KIND, C, DEGREE)
        elif SUMS:
            value = entry_values(products, variance, layer, i, j, mask, n, KIND, C, DEGREE)
        if SUMS:
            value = tl.where(mask, value, 0).to(tl.float64)
            summed = value
            if CENTRING == U_CENTRING:
                summed = tl.where(i == j, 0, value)
            sums += tl.sum(tl.reshape(summed, (BLOCK_R, BLOCK_C)), 1)
            if KIND == RBF:
                noise = value * value
            else:
                noise = tl.where(i == j, tl.abs(value), 0)
            weight += tl.sum(tl.reshape(noise, (BLOCK_R, BLOCK_C)), 1)
    if SUMS:
        row = strip * BLOCK_R + tl.arange(0, BLOCK_R)
        tl.store(row_sums + layer * n + row, sums, mask=row < n)
        left = parts + (layer * strips + strip) * 2
        tl.store(left, tl.sum(sums, 0))
        tl.store(left + 1, tl.sum(weight, 0))


@triton.jit(do_not_specialize=["strips"])
def write_entries(
    products,
    stats,
    row_sums,
    parts,
    out,  # [n, n], may be products
    n,
    strips,
    KIND: tl.constexpr,
    C: tl.constexpr,
    DEGREE: tl.constexpr,
    CENTRING: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One row of one layer's Gram matrix, centred or not, as the user gets it."""
    i = tl.program_id(0).to(tl.int64)
    total = 0.0
    row_i = 0.0
    variance = 1.0
    if KIND == RBF:
        variance = tl.load(stats + VARIANCE)
    if CENTRING != NO_CENTRING:
        one = tl.zeros((1,), tl.int64)
        total = tl.sum(strip_sums(parts, one, one == 0, strips, 0, BLOCK_S), 0)
        row_i = tl.load(row_sums + i)
    for at in range(0, n, BLOCK_C):
        j = at + tl.arange(0, BLOCK_C).to(tl.int64)
        mask = j < n
        value = entry_values(products, variance, i * 0, i, j, mask, n, KIND, C, DEGREE)
        row_j = 0.0
        if CENTRING != NO_CENTRING:
            row_j = tl.load(row_sums + j, mask=mask, other=0)
        value = centred(value, i, j, row_i, row_j, total, n, CENTRING)
        tl.store(out + i * n + j, value, mask=mask)


@triton.jit
def centred_block(
    products,
    row_sums,
    layer,  # [layers, 1]
    variance,  # [layers]
    total,  # [layers]
    scale,  # [layers]
    i,  # [1, entries]
    j,
    mask,
    n,
    KIND: tl.constexpr,
    C: tl.constexpr,
    DEGREE: tl.constexpr,
    CENTRING: tl.constexpr,
):
    """Centred and scaled entries of several layers at once, [layers, entries]; 0 outside."""
    value = entry_values(products, variance[:, None], layer, i, j, mask, n, KIND, C, DEGREE)
    row_i = tl.load(row_sums + layer * n + i, mask=mask, other=0)
    row_j = tl.load(row_sums + layer * n + j, mask=mask, other=0)
    value = centred(value, i, j, row_i, row_j, total[:, None], n, CENTRING)
    value = value * (1 / scale).to(value.dtype)[:, None]
    return tl.where(mask, value, 0)
