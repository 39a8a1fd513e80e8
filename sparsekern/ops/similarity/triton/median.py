"""Triton kernels for the exact median of squared distances, by selection on the bits.

The bits of floats that are not negative are ordered as the floats are. Digit by digit, from the
highest, a histogram of the distances that share the digits found so far tells the next digit of
the two middle ones. Histograms are counts: adding them atomically gives the same bits always.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entries import MEDIAN, STATS, VARIANCE, wide

DIGIT_BITS = tl.constexpr(8)
DIGITS = tl.constexpr(256)


@triton.jit
def middle_rank(n, WHICH: tl.constexpr):
    """0-based rank of the lower (0) or upper (1) middle of n² numbers."""
    return (wide(n) * n - 1 + WHICH) // 2


@triton.jit
def found_so_far(counts, layer, n, WHICH: tl.constexpr, PASS: tl.constexpr, PASSES: tl.constexpr):
    """The first ``PASS`` digits of a middle number, from the histograms of those passes."""
    rank = middle_rank(n, WHICH)
    digits = tl.arange(0, DIGITS)
    prefix = tl.full((), 0, tl.int64)
    for step in tl.static_range(PASS):
        at = counts + ((layer * 2 + WHICH) * PASSES + step) * DIGITS
        histogram = tl.load(at + digits)
        below = tl.cumsum(histogram, 0)
        digit = tl.sum((below <= rank).to(tl.int32), 0)
        digit = tl.minimum(digit, DIGITS - 1)
        rank -= tl.sum(tl.where(digits < digit, histogram, 0), 0)
        prefix = (prefix << DIGIT_BITS) | digit
    return prefix


@triton.jit
def as_bits(distance):
    """Bits of non-negative floats as integers of 64 bits, in the order of the floats."""
    if distance.dtype == tl.float64:
        bits = distance.to(tl.int64, bitcast=True)
    else:
        bits = distance.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    return bits


@triton.jit(do_not_specialize=["programs"])
def count_digits(
    distances,  # [layers, n, n]
    counts,  # [layers, 2, PASSES, DIGITS], 0 before the first pass
    n,
    programs,
    PASS: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One histogram pass over the distances of one layer, for both middle numbers."""
    layer = tl.program_id(1).to(tl.int64)
    low = found_so_far(counts, layer, n, 0, PASS, PASSES)
    high = found_so_far(counts, layer, n, 1, PASS, PASSES)
    entries = wide(n) * n
    at_layer = distances + layer * entries
    digits = tl.arange(0, DIGITS)
    low_counts = tl.zeros((DIGITS,), tl.int32)
    high_counts = tl.zeros((DIGITS,), tl.int32)
    shift: tl.constexpr = (PASSES - PASS) * DIGIT_BITS
    step = wide(programs) * BLOCK_E
    for at in range(tl.program_id(0).to(tl.int64) * BLOCK_E, entries, step):
        entry = at + tl.arange(0, BLOCK_E)
        inside = entry < entries
        bits = as_bits(tl.load(at_layer + entry, mask=inside, other=0))
        digit = ((bits >> (shift - DIGIT_BITS)) & (DIGITS - 1)).to(tl.int32)
        if PASS == 0:  # nothing is known yet
            low_counts += tl.histogram(digit, DIGITS, mask=inside)
        else:
            known = bits >> shift
            low_counts += tl.histogram(digit, DIGITS, mask=inside & (known == low))
            high_counts += tl.histogram(digit, DIGITS, mask=inside & (known == high))
    at = counts + (layer * 2 * PASSES + PASS) * DIGITS + digits
    tl.atomic_add(at, low_counts, mask=low_counts > 0, sem="relaxed")
    if PASS == 0:
        high_counts = low_counts
    tl.atomic_add(at + PASSES * DIGITS, high_counts, mask=high_counts > 0, sem="relaxed")


@triton.jit
def write_median(
    counts, stats, n, FRACTION: tl.constexpr, PASSES: tl.constexpr, WIDE: tl.constexpr
):
    """The two middle distances of a layer, and the RBF variance ``fraction² · median``."""
    layer = tl.program_id(0).to(tl.int64)
    low = found_so_far(counts, layer, n, 0, PASSES, PASSES)
    high = found_so_far(counts, layer, n, 1, PASSES, PASSES)
    if WIDE:
        low_value = low.to(tl.float64, bitcast=True)
        high_value = high.to(tl.float64, bitcast=True)
    else:
        low_value = low.to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
        high_value = high.to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
    at = stats + layer * STATS
    tl.store(at + MEDIAN, low_value)
    tl.store(at + MEDIAN + 1, high_value)
    fraction = tl.full((), FRACTION, tl.float64)
    tl.store(at + VARIANCE, fraction * fraction * (low_value + high_value) / 2)
