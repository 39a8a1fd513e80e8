"""Which algorithm a masked product takes: a pure function of sizes, dtype, ISA and threads.

Two are to choose from. "dense" writes the masked weight out and leaves the product to torch;
"sparse" touches kept weights only. Times are modelled as a sum of parts, each a count over a
rate; the rates were measured once per instruction set, and since both algorithms share the
machine, it is their ratio that decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ... import native


@dataclass(frozen=True)
class Rates:
    """What one thread does in a nanosecond, and what a call costs.

    Attributes:
        dense: operations of torch's matrix product on large float32 operands.
        sparse: operations of the sparse product, and of the sampled one (weight gradient).
        sampled: see sparse.
        values: kept weights read from a dense matrix, or written to one.
        packed: elements of the batch brought into panels and back.
        masked: weights written to a masked copy.
        call: nanoseconds that a dense product costs before it starts (two parallel regions more
            than the sparse one, and torch's operator calls).
    """

    dense: float
    sparse: float
    sampled: float
    values: float
    packed: float
    masked: float
    call: float


# torch's own product does not follow SPARSEKERN_ISA: its rate is that of the machine.
_RATES = {
    "avx512": Rates(dense=95, sparse=50, sampled=42, values=0.5, packed=1.2, masked=0.9, call=9000),
    "avx2": Rates(dense=95, sparse=35, sampled=30, values=0.5, packed=1.0, masked=0.9, call=9000),
    "portable": Rates(dense=95, sparse=9, sampled=7, values=0.4, packed=0.6, masked=0.5, call=9000),
}
# Against float32: rate of torch's matrix product, and of the compiled sparse one.
_DENSE_SHARE = {torch.float64: 0.5, torch.bfloat16: 1.7, torch.float16: 1.0}
_DENSE_SHARE_AMX = {torch.float64: 0.5, torch.bfloat16: 5.0, torch.float16: 1.0}
_SPARSE_SHARE = {torch.float64: 0.5}
_PARTS = ("forward", "input", "weight")
_SMALL_BATCH = 16  # lanes that a vector product of one kept weight covers at least


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
        isa: of the compiled core; those beyond ``"avx512"`` compute float32 products as it does.
        threads: that torch uses.

    Returns:
        ``"dense"`` or ``"sparse"``.
    """
    sparse = sparse_nanoseconds(part, batch, rows, columns, nnz, dtype, isa, threads)
    dense = dense_nanoseconds(part, batch, rows, columns, dtype, isa, threads)
    return "dense" if dense < sparse else "sparse"


def dense_nanoseconds(
    part: str, batch: int, rows: int, columns: int, dtype: torch.dtype, isa: str, threads: int
) -> float:
    """The modelled time of the dense algorithm; arguments as in :func:`algorithm`."""
    rates = _rates(isa)
    operations = 2 * batch * rows * columns
    shares = _DENSE_SHARE_AMX if isa == "amx" else _DENSE_SHARE
    product = operations / (rates.dense * shares.get(dtype, 1.0))
    return rates.call + (product + rows * columns / rates.masked) / threads


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
    """The modelled time of the sparse algorithm; arguments as in :func:`algorithm`."""
    if part not in _PARTS:
        raise ValueError(f"part must be one of {', '.join(_PARTS)}, got {part!r}")
    rates = _rates(isa)
    lanes = batch if batch == 1 else max(batch, _SMALL_BATCH)
    rate = rates.sampled if part == "weight" else rates.sparse
    product = 2 * lanes * nnz / (rate * _SPARSE_SHARE.get(dtype, 1.0))
    values = nnz / rates.values
    panels = batch * (rows + columns) / rates.packed
    written = rows * columns / (2 * rates.masked) if part == "weight" else 0
    return (product + values + panels + written) / threads


def _rates(isa: str) -> Rates:
    return _RATES.get(isa, _RATES["avx512"])


def _machine() -> tuple[str, int]:
    return str(native.cpu().isa()), torch.get_num_threads()


def here(part: str, batch: int, rows: int, columns: int, nnz: int, dtype: torch.dtype) -> bool:
    """Whether the sparse algorithm is the faster one on this machine, with torch's threads."""
    return algorithm(part, batch, rows, columns, nnz, dtype, *_machine()) == "sparse"


# What torch.compiler.assume_constant_result does, without importing torch._dynamo: tracing takes
# the answer as it is, and looks neither into the loading of a module nor at thread counts.
_machine._dynamo_marked_constant = True  # type: ignore[attr-defined]
