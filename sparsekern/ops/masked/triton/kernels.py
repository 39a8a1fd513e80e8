"""Triton kernels of dense products with a mask: applied as a weight is read, or a result written.

Masks are bytes, 1 where a weight is kept. They select, for 0 times NaN is NaN. Sums are float32, in
an order that the grid fixes. Tiles begin at 64-bit addresses; offsets inside of one are 32-bit, for
rows of less than 2²⁴ elements.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wide(value):
    """An integer as a 64-bit number, also where the compiler made a constant of it."""
    return tl.full((), 0, tl.int64) + value


@triton.jit
def multiply_masked(
    x,  # [batch, depth]
    weight,  # [features, depth], or with TURNED [depth, features]
    mask,  # of the same shape
    bias,  # [features]
    out,  # [batch, features], or with PARTS [splits, batch, features] float32
    batch,
    features,
    depth,
    x_stride,
    weight_stride,
    mask_stride,
    chunk,  # of the depth that a program takes
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    TURNED: tl.constexpr,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``x (W⊙M)ᵀ``, or with TURNED ``x (W⊙M)``: no masked weight is ever written.

    The weight is the left operand: masked in registers, from where the tensor cores of 9.0 take a
    left operand, and a tile of it is as large for a batch of 16 as for one of 128. Programs of the
    same weights are neighbours, so that these come from memory once.
    """
    row_tiles = tl.cdiv(batch, ROWS)
    b0 = tl.program_id(0) % row_tiles * ROWS
    f0 = tl.program_id(0) // row_tiles * FEATURES
    b = tl.arange(0, ROWS)
    f = tl.arange(0, FEATURES)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, depth)
    # 64-bit addresses of a tile's corner and 32-bit offsets in it: half the registers.
    k = tl.arange(0, BLOCK_K)
    x += wide(b0) * x_stride + begin
    if TURNED:
        weight += wide(begin) * weight_stride + f0
        mask += wide(begin) * mask_stride + f0
        weight_at = k[None, :] * weight_stride + f[:, None]
        mask_at = k[None, :] * mask_stride + f[:, None]
        weight_step = wide(weight_stride) * BLOCK_K
        mask_step = wide(mask_stride) * BLOCK_K
    else:
        weight += wide(f0) * weight_stride + begin
        mask += wide(f0) * mask_stride + begin
        weight_at = f[:, None] * weight_stride + k[None, :]
        mask_at = f[:, None] * mask_stride + k[None, :]
        weight_step = BLOCK_K
        mask_step = BLOCK_K
    x_at = b[None, :] * x_stride + k[:, None]
    in_features = (f < features - f0)[:, None]
    in_batch = (b < batch - b0)[None, :]
    product = tl.zeros((FEATURES, ROWS), tl.float32)
    for at in range(begin, end, BLOCK_K):
        inside = k < end - at
        known = in_features & inside[None, :]
        w = tl.load(weight + weight_at, mask=known, other=0)
        kept = tl.load(mask + mask_at, mask=known, other=0)
        w = tl.where(kept != 0, w, 0).to(DOT)
        a = tl.load(x + x_at, mask=in_batch & inside[:, None], other=0).to(DOT)
        product = tl.dot(w, a, product, input_precision=PRECISION, out_dtype=tl.float32)
        weight += weight_step
        mask += mask_step
        x += BLOCK_K
    if BIAS:
        shift = tl.load(bias + f0 + f, mask=f < features - f0, other=0).to(tl.float32)
        product += shift[:, None]
    if PARTS:
        out += wide(tl.program_id(1)) * batch * features
    place = out + wide(b0) * features + f0 + b[None, :] * features + f[:, None]
    tl.store(place, product.to(out.dtype.element_ty), mask=in_features & in_batch)


@triton.jit
def multiply_turned(
    grad,  # [batch, rows]
    x,  # [batch, columns]
    mask,  # [rows, columns]
    out,  # [rows, columns], or with PARTS [splits, rows, columns] float32
    batch,
    rows,
    columns,
    grad_stride,
    x_stride,
    chunk,  # of the batch that a program takes
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``gradᵀ x``, where MASKED 0 outside of the mask: written once, in the type that is wanted."""
    column_tiles = tl.cdiv(columns, COLUMNS)
    r0 = tl.program_id(0) // column_tiles * ROWS
    c0 = tl.program_id(0) % column_tiles * COLUMNS
    r = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, batch)
    k = tl.arange(0, BLOCK_K)
    grad += wide(begin) * grad_stride + r0
    x += wide(begin) * x_stride + c0
    grad_at = k[None, :] * grad_stride + r[:, None]
    x_at = k[:, None] * x_stride + c[None, :]
    in_rows = (r < rows - r0)[:, None]
    in_columns = (c < columns - c0)[None, :]
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(begin, end, BLOCK_K):
        inside = k < end - at
        g = tl.load(grad + grad_at, mask=in_rows & inside[None, :], other=0).to(DOT)
        a = tl.load(x + x_at, mask=in_columns & inside[:, None], other=0).to(DOT)
        product = tl.dot(g, a, product, input_precision=PRECISION, out_dtype=tl.float32)
        grad += wide(grad_stride) * BLOCK_K
        x += wide(x_stride) * BLOCK_K
    known = in_rows & in_columns
    corner = wide(r0) * columns + c0
    place = r[:, None] * columns + c[None, :]
    if MASKED:
        kept = tl.load(mask + corner + place, mask=known, other=0)
        product = tl.where(kept != 0, product, 0)
    if PARTS:
        out += wide(tl.program_id(1)) * rows * columns
    tl.store(out + corner + place, product.to(out.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["splits"])
def add_parts(
    parts,  # [splits, size]
    bias,  # [columns]
    mask,  # [size]
    out,  # [size]
    size,
    columns,
    splits,
    BIAS: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds what programs found of the same results, always in the same order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    place = parts + at
    for _ in range(splits):
        total += tl.load(place, mask=known, other=0)
        place += size
    if BIAS:
        total += tl.load(bias + at % columns, mask=known, other=0).to(tl.float32)
    if MASKED:
        total = tl.where(tl.load(mask + at, mask=known, other=0) != 0, total, 0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=known)


@triton.jit
def move_scores(
    weight,  # [size], 0 where removed
    grad,
    hidden,  # the weight where it is removed
    removed,  # bytes
    velocity,
    score,
    size,
    momentum,
    rate,
    PRUNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One pass over a weight: its scores by W⊙g, the whole W, and M⊙g, each in its own place."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = at < size
    w = tl.load(weight + at, mask=known, other=0)
    g = tl.load(grad + at, mask=known, other=0)
    if PRUNED:
        gone = known & (tl.load(removed + at, mask=known, other=0) != 0)
        w = tl.where(gone, tl.load(hidden + at, mask=gone, other=0), w)
        tl.store(weight + at, w, mask=gone)
        tl.store(grad + at, tl.zeros_like(g), mask=gone)
    speed = momentum * tl.load(velocity + at, mask=known, other=0)
    speed += w.to(tl.float32) * g.to(tl.float32)
    tl.store(velocity + at, speed, mask=known)
    tl.store(score + at, tl.load(score + at, mask=known, other=0) - rate * speed, mask=known)
