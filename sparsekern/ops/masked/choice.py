"""Which algorithm a masked product takes: a pure function of sizes, dtype, threads and rates.

Three are to choose from. "dense" writes the masked weight out and leaves the product to torch;
"sparse" touches kept weights only; "block" does too, four rows (or columns) that keep the same
entries at a time. Times are modelled as a sum of parts, each a count over a
rate. Those that differ most between machines are in a table (:mod:`.rates`), which ``sparsekern
tune`` measures; the others were measured on one machine (Zen 4, 2 threads, shapes from 512 x 512
to 4096 x 4096, batches from 1 to 512). Since both algorithms share the machine, it is their ratio
that decides; what the model gets wrong about it is measured too, by part and by kind of layer, and
multiplies it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from ... import native
from . import rates as rates_of
from .rates import DtypeRates

PARTS = ("forward", "input", "weight")
PACKED = "packed"  # the product of a weight stored by its kept entries

# Kinds of layers that the model is corrected for, each by itself. Of linear ones by the rows of the
# batch, and by whether the weight stays in the last-level cache.
LINEAR_KINDS = ("1", "to 8", "to 48", "to 96", "more", "1, far", "far")
CONVOLUTION_KINDS = (
    "few channels",
    "few pixels",
    "1 x 1",
    "1 x 1, stride",
    "stride",
    "narrow",
    "wide",
)
# The places of a table of corrections.
CORRECTED = tuple(
    (part, kind)
    for kinds, parts in ((LINEAR_KINDS, (*PARTS, PACKED)), (CONVOLUTION_KINDS, PARTS))
    for part in parts
    for kind in kinds
)
_BATCHES = (1, 8, 48, 96)
_FEW_CHANNELS, _FEW_PIXELS = 4, 512

# The time of a product of blocks over that of as many single entries.
_BLOCKS = {"forward": 0.6, "input": 0.6, "weight": 0.9}
# The same for N:M groups, by how many entries each strip of columns keeps at least: 2:4 and 1:4.
_STRIPS = ((32, 0.7), (0, 0.88))
_PANEL_BYTES = 1 << 17  # of a tile that stay in the second-level cache
_CALL = 30000.0  # nanoseconds that torch's operators and their parallel regions add

_CACHED_BYTES = 16 << 20  # of a weight that may stay in the last-level cache
_MASKED_RATES = (3.4, 1.6)  # weights written to a masked copy per nanosecond: cached, not cached
_READ_RATE = 30.0  # bytes of the weight's cache lines that hold kept entries
_LINE = 64
_ENTRY = 1.2  # nanoseconds to read a kept weight, or to write its gradient
# Of packed values: nanoseconds to read one for a batch of one, and for panels; and bytes of a dense
# weight that a small batch reads in a nanosecond.
_STORED, _STORED_MORE, _DENSE_READ = 0.55, 0.3, 9.0
_PACKED = 3.05  # elements of the batch brought into panels and back
_WRITTEN = 3.2  # elements of the dense gradient
# The column order reads values at random: nanoseconds an entry, and more for each million entries
# until every read misses the caches.
_PERMUTED, _PERMUTED_MORE, _PERMUTED_MOST = 1.4, 0.55, 12.0
_LEAST_LANES = 16  # that a multiply-add covers, except for a batch of one
# Of a convolution: nanoseconds of a call by kept weights, and to look a kept weight up.
_CONV_CALL, _TAP = 18000.0, 6.1
# Of torch's: nanoseconds of a call; how much longer operations and pixels take than those of many
# channels and of a depthwise one; how many pixels stay cached, and what each of the others adds;
# how much longer operations take with no more than 16 channels in a group; pixels of the gradient
# of x where there is a stride; and nanoseconds for each entry of the weight's gradient.
_DENSE_CALL, _DENSE_WORK, _DENSE_PIXELS = 44500.0, 1.34, 0.4
_DENSE_CACHED, _DENSE_FAR = 2e6, 2.7
_DENSE_NARROW, _DENSE_STRIDED, _DENSE_ENTRY = 0.33, 2.2, 3.5
_NARROW = 16
# Channels of a group below which torch takes another way to its products, the weight's gradient
# sooner than the others, and with 16 bits sooner than with 32; and nanoseconds that a pixel then
# takes more.
_GROUP, _GROUP_WEIGHT, _GROUP_WEIGHT_SHORT = 3, 8, 16
_DENSE_GROUPED = 4.0
# Of a depthwise one: how much longer torch's operations and pixels take than the rates say;
# nanoseconds that a channel of an image takes by kept weights, with none and with any more; its
# pixels over the rate, likewise; and nanoseconds to widen and narrow one of 16 bits.
_PLANE_DENSE_WORK, _PLANE_DENSE_PIXELS = 3.0, 1.0
_PLANE, _PLANE_KEPT = 15.0, 40.0
_PLANE_PIXEL, _PLANE_PIXEL_KEPT, _PLANE_NARROW = 0.28, 0.57, 1.6


def algorithm(
    part: str,
    batch: int,
    rows: int,
    columns: int,
    nnz: int,
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
    in_blocks: int = 0,
) -> str:
    """The faster algorithm for one part of a masked linear layer.

    Args:
        part: ``"forward"``, ``"input"`` (the gradient with respect to x), or ``"weight"`` (the
            masked gradient with respect to the weight).
        batch: rows of x.
        rows: output features.
        columns: input features.
        nnz: kept weights.
        dtype: of x.
        threads: that torch uses.
        rates: of the machine, for the dtype.
        in_blocks: kept weights in fours of rows that keep the same columns; for ``"input"`` in
            fours of columns that keep the same rows.

    Returns:
        ``"dense"``, ``"block"`` or ``"sparse"``.
    """
    sparse = sparse_nanoseconds(part, batch, rows, columns, nnz, dtype, threads, rates, in_blocks)
    dense = dense_nanoseconds(batch, rows, columns, dtype, threads, rates)
    dense *= _correction(part, linear_kind(batch, rows, columns, dtype), rates)
    return "dense" if dense < sparse else "block" if in_blocks > nnz // 2 else "sparse"


def linear_kind(batch: int, rows: int, columns: int, dtype: torch.dtype) -> str:
    """Which of :data:`LINEAR_KINDS` a linear layer is."""
    if rows * columns * dtype.itemsize > _CACHED_BYTES:
        return LINEAR_KINDS[-2] if batch <= 1 else LINEAR_KINDS[-1]
    return LINEAR_KINDS[sum(batch > most for most in _BATCHES)]


def convolution_kind(x: Sequence[int], weight: Sequence[int], out: Sequence[int]) -> str | None:
    """Which of :data:`CONVOLUTION_KINDS` a convolution is, None if depthwise: that is as modelled.

    See :func:`convolution_algorithm`.
    """
    few, small, single, single_stride, stride, narrow, wide = CONVOLUTION_KINDS
    strided = 2 * out[0] * out[1] <= x[2] * x[3]
    if is_depthwise(x, weight):
        return None
    if weight[1] <= _FEW_CHANNELS:
        return few
    if x[0] * out[0] * out[1] <= _FEW_PIXELS:
        return small
    if weight[2] * weight[3] == 1:
        return single_stride if strided else single
    return stride if strided else narrow if weight[1] <= _NARROW else wide


def _correction(part: str, kind: str | None, rates: DtypeRates) -> float:
    if kind is None or not rates.corrections:
        return 1.0
    return rates.corrections[CORRECTED.index((part, kind))]


def dense_nanoseconds(
    batch: int, rows: int, columns: int, dtype: torch.dtype, threads: int, rates: DtypeRates
) -> float:
    """The modelled time of the dense algorithm, the same for all parts; see :func:`algorithm`."""
    product = 2 * batch * rows * columns / rates.dense
    cached = rows * columns * dtype.itemsize <= _CACHED_BYTES
    return _CALL + (product + rows * columns / _MASKED_RATES[0 if cached else 1]) / threads


def sparse_nanoseconds(
    part: str,
    batch: int,
    rows: int,
    columns: int,
    nnz: int,
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
    in_blocks: int = 0,
) -> float:
    """The modelled time of the algorithms by kept weights; see :func:`algorithm`."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    depth = rows if part == "input" else columns  # features of the panels that are read at random
    panel = depth * min(batch, 64) * 4
    rate = rates.sparse if panel <= _PANEL_BYTES else rates.sparse_far
    lanes = batch if batch == 1 and part == "forward" else max(batch, _LEAST_LANES)
    # A batch of one is bound by the weights' bytes, whatever their order.
    saved = (1 - _BLOCKS[part]) * in_blocks if batch > 1 else 0
    time = 2 * lanes * (nnz - saved) / rate + sparse_overhead(batch, rows, columns, nnz)
    if part == "input":
        time += nnz * (_PERMUTED + min(_PERMUTED_MORE * nnz / 1e6, _PERMUTED_MOST) - _ENTRY)
    elif part == "weight":
        time += rows * columns / _WRITTEN
    elif rows * columns * dtype.itemsize > _CACHED_BYTES:
        time += min(rows * columns * dtype.itemsize, nnz * _LINE) / _READ_RATE
    return time / threads


def sparse_overhead(batch: int, rows: int, columns: int, nnz: int) -> float:
    """Nanoseconds of one thread that a sparse product takes beside its operations."""
    return _ENTRY * nnz + batch * (rows + columns) / _PACKED


def packed_algorithm(
    batch: int,
    rows: int,
    columns: int,
    nnz: int,
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
    in_blocks: int = 0,
    has_dense: bool = True,
) -> str:
    """The faster algorithm of a weight whose kept values are stored by themselves.

    Args:
        batch: as in :func:`algorithm`, like all other arguments of these names.
        rows: output features.
        columns: input features.
        nnz: kept weights.
        dtype: of x.
        threads: that torch uses.
        rates: of the machine.
        in_blocks: kept weights in fours of rows that keep the same columns.
        has_dense: whether the dense weight is there too, so that it need not be made.

    Returns:
        ``"dense"`` or ``"unstructured"``.
    """
    dense, sparse = packed_nanoseconds(
        batch, rows, columns, nnz, dtype, threads, rates, in_blocks, has_dense
    )
    dense *= _correction(PACKED, linear_kind(batch, rows, columns, dtype), rates)
    return "dense" if dense < sparse else "unstructured"


def packed_nanoseconds(
    batch: int,
    rows: int,
    columns: int,
    nnz: int,
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
    in_blocks: int = 0,
    has_dense: bool = True,
) -> tuple[float, float]:
    """The modelled times of the dense and of the packed weight; see :func:`packed_algorithm`."""
    weights = rows * columns
    dense = 2 * batch * weights / rates.dense
    if weights * dtype.itemsize > _CACHED_BYTES:
        dense = max(dense, weights * dtype.itemsize / _DENSE_READ)
    dense = _CALL / 2 + dense / threads
    if not has_dense:
        dense += (nnz * _ENTRY + weights / _MASKED_RATES[0]) / threads
    if batch == 1:
        return dense, nnz * _STORED / threads
    rate = rates.sparse if columns * min(batch, 64) * 4 <= _PANEL_BYTES else rates.sparse_far
    operations = 2 * max(batch, _LEAST_LANES) * (nnz - (1 - _BLOCKS["forward"]) * in_blocks)
    moved = batch * (rows + columns) / _PACKED
    return dense, (operations / rate + nnz * _STORED_MORE + moved) / threads


def convolution_algorithm(
    part: str,
    x: Sequence[int],
    weight: Sequence[int],
    out: Sequence[int],
    nnz: int,
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
    channels_last: bool = False,
) -> str:
    """The faster algorithm for one part of a masked convolution.

    Args:
        part: as in :func:`algorithm`.
        x: its shape, ``(N, C, H, W)``.
        weight: its shape, ``(filters, C / groups, kh, kw)``.
        out: height and width of the result.
        nnz: kept weights.
        dtype: of x.
        threads: that torch uses.
        rates: of the machine, for the dtype of x.
        channels_last: whether the channels of x are adjacent: then torch's depthwise convolution
            takes half the time, and kept weights, that lie elsewhere in each channel, twice theirs.

    Returns:
        ``"dense"`` or ``"sparse"``.
    """
    if channels_last and is_depthwise(x, weight):
        return "dense"
    dense, sparse = convolution_nanoseconds(part, x, weight, out, nnz, dtype, threads, rates)
    dense *= _correction(part, convolution_kind(x, weight, out), rates)
    return "dense" if dense < sparse else "sparse"


def is_depthwise(x: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether every channel is convolved by itself."""
    return x[1] > 1 and weight[1] == 1


def convolution_nanoseconds(
    part: str,
    x: Sequence[int],
    weight: Sequence[int],
    out: Sequence[int],
    nnz: int,
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
) -> tuple[float, float]:
    """The modelled times of the dense and the sparse one; see :func:`convolution_algorithm`."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if is_depthwise(x, weight):
        return _depthwise_nanoseconds(x, weight, out, nnz, dtype, threads, rates)
    images, pixels = max(1, x[0]), out[0] * out[1]
    # Pixels of both tensors: what is brought into panels and back, or into torch's own layout.
    moved = images * (x[1] * x[2] * x[3] + weight[0] * pixels)
    if part != "input":  # a kernel smaller than its stride leaves pixels unread
        seen = min(x[2] * x[3], pixels * weight[2] * weight[3])
        moved -= images * x[1] * (x[2] * x[3] - seen)
    work = _DENSE_WORK * 2 * images * pixels * math.prod(weight) / rates.convolution
    work *= 1 + _DENSE_NARROW * (_NARROW / max(_NARROW, weight[1])) ** 2
    pixel = rates.dense_pixel * _DENSE_PIXELS
    if part == "input" and 2 * pixels <= x[2] * x[3]:
        pixel *= _DENSE_STRIDED
    work += pixel * (moved + _DENSE_FAR * max(0.0, moved - _DENSE_CACHED))
    if part == "weight":
        work += math.prod(weight) * _DENSE_ENTRY
    if weight[1] < x[1] and weight[1] < _least_group(part, dtype):
        work += _DENSE_GROUPED * moved
    dense = _DENSE_CALL + work / threads
    # Lanes are images, or, where these do not fill a vector, strips of rows of them.
    filled = math.ceil(images / _LEAST_LANES) * _LEAST_LANES / images
    lanes = filled if images > _LEAST_LANES else 1.0
    work = 2 * images * pixels * nnz / rates.sparse_convolution + moved * rates.sparse_pixel
    sparse = _CONV_CALL + (work * lanes + _TAP * nnz) / threads
    return dense, sparse


def _least_group(part: str, dtype: torch.dtype) -> int:
    if part != "weight":
        return _GROUP
    return _GROUP_WEIGHT_SHORT if dtype.itemsize == 2 else _GROUP_WEIGHT


def in_blocks(part: str, nnz: int, structure: Sequence[int]) -> int:
    """Kept weights in blocks, or as many as would save the time that N:M groups do.

    Args:
        part: as in :func:`algorithm`.
        nnz: kept weights.
        structure: the pattern's: what each strip of columns keeps, what is in blocks of rows, and
            in blocks of columns.
    """
    strip, by_rows, by_columns = structure
    if part == "input":
        return by_columns
    if part == "forward" and strip:
        time = next(time for least, time in _STRIPS if strip >= least)
        return max(by_rows, round(nnz * (1 - time) / (1 - _BLOCKS[part])))
    return by_rows


def _depthwise_nanoseconds(
    x: Sequence[int],
    weight: Sequence[int],
    out: Sequence[int],
    nnz: int,
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
) -> tuple[float, float]:
    images, weights = max(1, x[0]), math.prod(weight)
    planes, pixels = images * weight[0], out[0] * out[1]
    moved = images * (x[1] * x[2] * x[3] + weight[0] * pixels)
    work = 2 * images * pixels * weights
    dense = _PLANE_DENSE_WORK * work / rates.convolution
    dense += _PLANE_DENSE_PIXELS * rates.dense_pixel * moved
    # Planes without a kept weight are filled, not read: their share where weights fall at random.
    kept = 1 - (1 - nnz / weights) ** (weight[2] * weight[3])
    sparse = planes * (_PLANE + _PLANE_KEPT * kept)
    sparse += work * nnz / weights / rates.sparse_convolution
    pixel = (_PLANE_PIXEL + _PLANE_PIXEL_KEPT * kept) * rates.sparse_pixel
    pixel += _PLANE_NARROW * kept if dtype.itemsize == 2 else 0
    sparse += moved / 2 * pixel
    return _DENSE_CALL + dense / threads, _CONV_CALL + (sparse + _TAP * nnz) / threads


def here(
    part: str, batch: int, rows: int, columns: int, nnz: int, dtype: torch.dtype, in_blocks: int = 0
) -> bool:
    """Whether kept weights alone are faster on this machine, with torch's threads."""
    threads, rates = _here(dtype)
    decide = algorithm if torch.compiler.is_compiling() else _remembered
    return decide(part, batch, rows, columns, nnz, dtype, threads, rates, in_blocks) != "dense"


def all_here(
    batch: int, rows: int, columns: int, kept: tuple[int, int, int, int], dtype: torch.dtype
) -> tuple[bool, bool, bool]:
    """:func:`here` for the forward pass, the gradient of x and the weight's, in one look-up.

    Args:
        batch: rows of x.
        rows: output features.
        columns: input features.
        kept: weights, and the pattern's structure.
        dtype: of x.
    """
    threads, rates = _here(dtype)
    decide = _all if torch.compiler.is_compiling() else _remembered_all
    return decide(batch, rows, columns, kept, dtype, threads, rates)


def _all(
    batch: int,
    rows: int,
    columns: int,
    kept: tuple[int, int, int, int],
    dtype: torch.dtype,
    threads: int,
    rates: DtypeRates,
) -> tuple[bool, bool, bool]:
    nnz, *structure = kept
    layer = (batch, rows, columns, nnz, dtype, threads, rates)
    forward, of_input, of_weight = (
        algorithm(part, *layer, in_blocks(part, nnz, structure)) != "dense" for part in PARTS
    )
    return forward, of_input, of_weight


def packed_here(
    batch: int,
    rows: int,
    columns: int,
    nnz: int,
    dtype: torch.dtype,
    in_blocks: int,
    has_dense: bool,
) -> str:
    """What :func:`packed_algorithm` says on this machine, with torch's threads."""
    threads, rates = _here(dtype)
    decide = packed_algorithm if torch.compiler.is_compiling() else _remembered_packed
    return decide(batch, rows, columns, nnz, dtype, threads, rates, in_blocks, has_dense)


# A layer asks the same at each step; the answer takes longer than to look it up.
_remembered = functools.lru_cache(maxsize=4096)(algorithm)
_remembered_all = functools.lru_cache(maxsize=4096)(_all)
_remembered_packed = functools.lru_cache(maxsize=4096)(packed_algorithm)


def convolves_sparsely(
    part: str,
    x: Sequence[int],
    weight: Sequence[int],
    out: Sequence[int],
    nnz: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> bool:
    """The same for a convolution; see :func:`convolution_algorithm`."""
    threads, rates = _here(dtype)
    found = convolution_algorithm(part, x, weight, out, nnz, dtype, threads, rates, channels_last)
    return found == "sparse"


def _here(dtype: torch.dtype) -> tuple[int, DtypeRates]:
    if not torch.compiler.is_compiling():
        threads = torch.get_num_threads()
        return threads, rates_of.rates(str(native.cpu().isa()), threads).of(dtype)
    threads, numbers = _machine(dtype)
    return threads, DtypeRates(*numbers)


def _machine(dtype: torch.dtype) -> tuple[int, tuple[Any, ...]]:
    threads = torch.get_num_threads()
    found = rates_of.rates(str(native.cpu().isa()), threads).of(dtype)
    return threads, (*found[:-1], tuple(found.corrections))


# What torch.compiler.assume_constant_result does, without importing torch._dynamo: tracing takes
# the answer as it is, and looks neither into the loading of a module nor at thread counts or files.
_machine._dynamo_marked_constant = True  # type: ignore[attr-defined]
