"""Which algorithm a masked product takes: a pure function of sizes, dtype, ISA and threads.

Two are to choose from. "dense" writes the masked weight out and leaves the product to torch;
"sparse" touches kept weights only. Times are modelled as a sum of parts, each a count over a
rate. The rates were measured on one machine (Zen 4, 2 threads, shapes from 512 x 512 to
4096 x 4096, batches from 1 to 512); since both algorithms share the machine, it is their ratio
that decides.
"""

from __future__ import annotations

import torch

from ... import native

PARTS = ("forward", "input", "weight")

# Per thread and nanosecond: operations of torch's float32 matrix product, and of the sparse one
# while the panel of one tile fits the second-level cache, and beyond.
_DENSE_RATE = 95.0
_SPARSE_RATES = {"avx512": (65.0, 50.0), "avx2": (45.0, 38.0), "portable": (9.0, 8.0)}
_PANEL_BYTES = 1 << 17
# Against float32: torch's product (which follows the machine, not SPARSEKERN_ISA), and the sparse.
_DENSE_SHARE = {torch.float64: 0.5, torch.bfloat16: 1.7}
_DENSE_SHARE_AMX = {torch.float64: 0.5, torch.bfloat16: 5.0}
_SPARSE_SHARE = {torch.float64: 0.5}
_CALL = 30000.0  # nanoseconds that torch's operators and their parallel regions add

_CACHED_BYTES = 16 << 20  # of a weight that may stay in the last-level cache
_MASKED_RATES = (2.5, 1.0)  # weights written to a masked copy per nanosecond: cached, not cached
_READ_RATE = 12.5  # bytes of the weight's cache lines that hold kept entries
_LINE = 64
_ENTRY = 1.2  # nanoseconds to read a kept weight, or to write its gradient
_PACKED = 2.4  # elements of the batch brought into panels and back
_WRITTEN = 2.5  # elements of the dense gradient
# The column order reads values at random: nanoseconds an entry, and more for each million entries
# until every read misses the caches.
_PERMUTED, _PERMUTED_MORE, _PERMUTED_MOST = 1.0, 0.4, 12.0
_LEAST_LANES = 16  # that a multiply-add covers, except for a batch of one


def algorithm(
    part: str,
    batch: int,
    rows: int,
    columns: int,
    nnz: int,
    dtype: torch.dtype,
    isa: str,
    threads: int,
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
        isa: of the compiled core; those beyond ``"avx512"`` compute sparse products as it does.
        threads: that torch uses.

    Returns:
        ``"dense"`` or ``"sparse"``.
    """
    sparse = sparse_nanoseconds(part, batch, rows, columns, nnz, dtype, isa, threads)
    dense = dense_nanoseconds(batch, rows, columns, dtype, isa, threads)
    return "dense" if dense < sparse else "sparse"


def dense_nanoseconds(
    batch: int, rows: int, columns: int, dtype: torch.dtype, isa: str, threads: int
) -> float:
    """The modelled time of the dense algorithm, the same for all parts; see :func:`algorithm`."""
    shares = _DENSE_SHARE_AMX if isa == "amx" else _DENSE_SHARE
    product = 2 * batch * rows * columns / (_DENSE_RATE * shares.get(dtype, 1.0))
    cached = rows * columns * dtype.itemsize <= _CACHED_BYTES
    return _CALL + (product + rows * columns / _MASKED_RATES[0 if cached else 1]) / threads


def sparse_nanoseconds(
    part: str,
    batch: int,
    rows: int,
    columns: int,
    nnz: int,
    dtype: torch.dtype,
    isa: str,
    threads: int,
) -> float:
    """The modelled time of the sparse algorithm; see :func:`algorithm`."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    fast, slow = _SPARSE_RATES.get(isa, _SPARSE_RATES["avx512"])
    depth = rows if part == "input" else columns  # features of the panels that are read at random
    panel = depth * min(batch, 64) * 4
    rate = (fast if panel <= _PANEL_BYTES else slow) * _SPARSE_SHARE.get(dtype, 1.0)
    lanes = batch if batch == 1 and part == "forward" else max(batch, _LEAST_LANES)
    time = 2 * lanes * nnz / rate + _ENTRY * nnz + batch * (rows + columns) / _PACKED
    if part == "input":
        time += nnz * (_PERMUTED + min(_PERMUTED_MORE * nnz / 1e6, _PERMUTED_MOST) - _ENTRY)
    elif part == "weight":
        time += rows * columns / _WRITTEN
    elif rows * columns * dtype.itemsize > _CACHED_BYTES:
        time += min(rows * columns * dtype.itemsize, nnz * _LINE) / _READ_RATE
    return time / threads


def here(part: str, batch: int, rows: int, columns: int, nnz: int, dtype: torch.dtype) -> bool:
    """Whether the sparse algorithm is the faster one on this machine, with torch's threads."""
    return algorithm(part, batch, rows, columns, nnz, dtype, *_machine()) == "sparse"


def _machine() -> tuple[str, int]:
    return str(native.cpu().isa()), torch.get_num_threads()


# What torch.compiler.assume_constant_result does, without importing torch._dynamo: tracing takes
# the answer as it is, and looks neither into the loading of a module nor at thread counts.
_machine._dynamo_marked_constant = True  # type: ignore[attr-defined]
