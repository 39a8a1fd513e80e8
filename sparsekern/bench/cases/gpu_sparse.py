"""Sparse work on a GPU at sizes that fill one. There only where torch sees a GPU.

G5: inference with compressed weights at small batches. G6: selection, penalties, dead neurons. The
floor of both is the device's copy bandwidth: nothing here is limited by arithmetic.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import sparsekern as sk

from .. import networks
from ..case import AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..gate import relative_distance
from . import activity, penalties, selection

SUITE = "gpu"
# Columns, rows: a square layer, and the widening layer of an 8-billion-parameter transformer's MLP.
_LAYERS = ((4096, 4096), (4096, 14336))
_BATCHES = (1, 4, 8, 16)
_SPARSITIES = (0.8, 0.9, 0.95, 0.98)
_BOUNDS = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
# Values besides those of the case on the CPU (25 million weights, 6 million activations), by which
# launches and the last-level cache no longer count.
_MANY = (1 << 28, 1 << 30)
_TENSOR = 1 << 26  # of these, in each tensor


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    return sparse_cases(quick) if torch.cuda.is_available() else []


def sparse_cases(quick: bool) -> list[AnyCase]:
    """The cases, whether there is a GPU or not."""
    if quick:
        products: list[AnyCase] = [_product(batch, 256, 160, 0.9) for batch in (1, 16)]
        return [*products, *_selections(True, [1 << 14])]
    return [
        *(
            _product(batch, *layer, sparsity)
            for layer in _LAYERS
            for batch in _BATCHES
            for sparsity in _SPARSITIES
        ),
        *_selections(False, list(_MANY)),
    ]


def _product(batch: int, columns: int, rows: int, sparsity: float) -> Case:
    nnz = round(rows * columns * (1 - sparsity))

    def inputs(dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        return {
            "x": torch.randn(batch, columns, generator=generator).to(dtype),
            "weight": weight.to(dtype),
            "mask": torch.rand(rows, columns, generator=generator) >= sparsity,
        }

    def oracle(made: dict[str, Tensor]) -> list[Tensor]:
        kept = torch.where(made["mask"], made["weight"].double(), 0)
        return [made["x"].double() @ kept.T]

    def compressed(made: dict[str, Tensor]) -> dict[str, Any]:
        pattern = sk.SparsityPattern(made["mask"])
        pattern.compress(made["weight"])
        return {**made, "pattern": pattern}

    def ours(made: dict[str, Any]) -> list[Tensor]:
        with torch.no_grad():
            return [sk.masked_linear(made["x"], made["weight"], made["pattern"])]

    def masked(made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": made["x"], "weight": torch.where(made["mask"], made["weight"], 0)}

    def csr(made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": made["x"], "weight": masked(made)["weight"].to_sparse_csr()}

    percent = f"{100 * sparsity:g}"
    return Case(
        id=f"G5-{batch}x{columns}x{rows}-{percent}",
        suite=SUITE,
        title=f"inference with compressed weights ({batch}, {columns}, {rows}), {percent}% sparse",
        reason="a batch so small that the bytes of the weight decide",
        shapes=f"({batch}, {columns}, {rows}), {percent}%",
        inputs=inputs,
        oracle=oracle,
        error=relative_distance,
        bounds=_BOUNDS,
        # A bit for each weight, a value for each kept one.
        cost=Cost(2 * batch * nnz, nnz + batch * (rows + columns), rows * columns // 8),
        dtypes=("float32", "bfloat16", "float16"),
        contenders=(
            *sparsekern_contenders(ours, prepare=compressed),
            Contender(
                "dense",
                "cuBLAS, masked beforehand",
                lambda made: [made["x"] @ made["weight"].T],
                prepare=masked,
                group="eager PyTorch",
            ),
            Contender(
                "masked_dense",
                "masked, then dense",
                lambda made: [made["x"] @ torch.where(made["mask"], made["weight"], 0).T],
            ),
            Contender(
                "torch_csr",
                "torch CSR (cuSPARSE)",
                lambda made: [(made["weight"] @ made["x"].T).T],
                prepare=csr,
            ),
        ),
    )


def _selections(quick: bool, many: list[int]) -> list[AnyCase]:
    """The cases of the CPU under other names, and the same work on more values."""
    found: list[AnyCase] = []
    weights = [*selection.cases(quick), *penalties.cases(quick)]
    for case in (*weights, *activity.cases(quick)):
        assert isinstance(case, Case)
        found.append(_renamed(case))
    for count in many:
        for case in weights:
            assert isinstance(case, Case)
            found.append(_enlarged(case, count, quick))
        found.append(_many_activations(activity.cases(quick)[0], count))
    return found


def _renamed(case: Case, many: str = "", **changes: Any) -> Case:
    kept = [contender for contender in case.contenders if "numpy" not in contender.name]
    oracle = _kth_magnitude if case.id == "T1" else case.oracle
    name = f"G6-{many}{case.id}"  # --case G6-256M is all work on so many
    fields = {"oracle": oracle, "tiny": None, "summary": False, **changes}
    return dataclasses.replace(case, id=name, suite=SUITE, contenders=tuple(kept), **fields)


def _kth_magnitude(ws: list[Tensor]) -> list[Tensor]:
    flat = torch.cat([w.detach().abs().flatten() for w in ws])
    return [flat.sort().values[selection.rank_of(len(flat))].double()]


def _enlarged(case: Case, count: int, quick: bool) -> Case:
    """The work of a case over all weights of a network, on ``count`` of them."""
    assert case.cost is not None
    network = networks.count(quick)
    cost = Cost(0, case.cost.values // network * count, case.cost.other_bytes // network * count)
    before = case.title.partition(" of ResNet-50")[0]
    needs_grad = case.suite == "penalties"

    def inputs(dtype: torch.dtype, seed: int) -> list[Tensor]:
        found = _values(count, dtype, seed)
        if case.id == "T1-masks":
            return [x.abs_() for x in found]
        return [x.requires_grad_(needs_grad) for x in found]

    return _renamed(
        case,
        f"{_label(count)}-",
        title=f"{before}, {count} values",
        reason="so many that neither launches nor caches count",
        shapes=f"N={count}",
        inputs=inputs,
        cost=cost,
    )


def _label(count: int) -> str:
    return f"{count >> 20}M" if count >= 1 << 20 else str(count)


def _many_activations(case: AnyCase, count: int) -> Case:
    assert isinstance(case, Case)
    shape = (max(1, count // (128 * 28 * 28)), 128, 28, 28)

    def inputs(dtype: torch.dtype, seed: int) -> Tensor:
        size = torch.Size(shape).numel()
        return torch.cat([x.relu_() for x in _values(size, dtype, seed)]).view(shape)

    return _renamed(
        case,
        f"{_label(count)}-",
        title=f"dead-neuron rates, {shape}",
        reason="so many that neither launches nor caches count",
        shapes="x".join(map(str, shape)),
        inputs=inputs,
        cost=Cost(operations=0, values=torch.Size(shape).numel()),
    )


def _values(count: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Normal values in tensors of equal size and the last of what is left.

    A million are drawn and repeated at other scales: a thousand million would take longer to draw
    than everything that is measured on them.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(min(count, 1 << 20), generator=generator)
    scales = torch.rand(-(-_TENSOR // len(drawn)), generator=generator) + 0.5
    tensor = (scales[:, None] * drawn).flatten().to(dtype)
    sizes = [min(_TENSOR, count - first) for first in range(0, count, _TENSOR)]
    return [tensor[:size].clone() for size in sizes]
