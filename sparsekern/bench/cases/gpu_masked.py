"""Masked linear layers on a GPU: G4, by kept entries. There only where torch sees a GPU.

Against cuBLAS on the dense weight and on the masked one, and cuSPARSE on the kept entries. float32
follows the matmul precision of the process.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import sparsekern as sk

from ..case import OURS, AnyCase, Case, Contender, Cost
from ..gate import relative_distance
from .gpu import SUITE, bounds
from .masked import Work

_SPARSITIES = (0.9, 0.95, 0.98, 0.998)
# Batch, columns, rows: a square layer, and the widening layer of a transformer's MLP block.
_SHAPES = ((256, 4096, 4096), (2048, 1024, 4096))
_GROUP = "torch.sparse"
_EAGER = (OURS, "reference", "masked_dense", "dense")  # of the CPU's cases


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    return masked_cases(quick) if torch.cuda.is_available() else []


def masked_cases(quick: bool) -> list[AnyCase]:
    """The cases, whether there is a GPU or not."""
    shapes = ((24, 96, 128),) if quick else _SHAPES
    sparsities = (0.9,) if quick else _SPARSITIES
    works = [
        Work(kind, *shape, sparsity)
        for kind in ("M1", "M2", "M3")
        for shape in shapes
        for sparsity in sparsities
    ]
    return [
        *map(_case, works),
        *(_update(256 if quick else 4096, sparsity) for sparsity in sparsities),
    ]


def _case(work: Work) -> Case:
    case = work.case()
    eager = [contender for contender in case.contenders if contender.name in _EAGER]
    return dataclasses.replace(
        case,
        id=case.id.replace("M", "G4-M", 1),
        suite=SUITE,
        reason="never slower than a masked weight, and faster from 98% on",
        bounds=bounds(),
        contenders=(*eager, *_csr(work.kind)),
        summary=False,
    )


def _csr(kind: str) -> list[Contender]:
    """cuSPARSE, the conversion not counted: of a weight that is trained it would be."""
    calls = {"M1": _forward, "M2": _masked_backward, "M3": _dense_backward}
    finish = _scatter if kind == "M2" else None
    label = "torch.sparse CSR, values given"
    return [
        Contender("torch_csr", label, calls[kind], prepare=_prepare, finish=finish, group=_GROUP)
    ]


def _prepare(inputs: dict[str, Any]) -> dict[str, Any]:
    weight, mask = inputs["weight"].detach(), inputs["mask"]
    kept = torch.where(mask, weight, 0)
    return {
        **{name: value.detach() for name, value in inputs.items()},
        "csr": _int32(kept.to_sparse_csr()),
        "transposed": _int32(kept.t().contiguous().to_sparse_csr()),
        "zeros": _int32(mask.to(weight.dtype).to_sparse_csr()),
    }


def _int32(matrix: Tensor) -> Tensor:
    pointer, index = matrix.crow_indices().int(), matrix.col_indices().int()
    return torch.sparse_csr_tensor(pointer, index, matrix.values(), matrix.shape)


def _forward(state: dict[str, Any]) -> list[Tensor]:
    return [(state["csr"] @ state["x"].t()).t()]


def _masked_backward(state: dict[str, Any]) -> list[Tensor]:
    sampled = torch.sparse.sampled_addmm(
        state["zeros"], state["grad"].t().contiguous(), state["x"], beta=0.0
    )
    x_grad = (state["transposed"] @ state["grad"].t()).t()
    return [*_forward(state), x_grad, sampled.values(), state["mask"]]


def _scatter(returned: list[Tensor]) -> list[Tensor]:
    out, x_grad, values, mask = returned
    return [out, x_grad, values.new_zeros(mask.shape).masked_scatter(mask, values)]


def _dense_backward(state: dict[str, Any]) -> list[Tensor]:
    x_grad = (state["transposed"] @ state["grad"].t()).t()
    return [*_forward(state), x_grad, state["grad"].t() @ state["x"]]


def _update(size: int, sparsity: float) -> Case:
    """A changed mask brought into the form that products take."""

    def inputs(dtype: torch.dtype, seed: int) -> dict[str, Any]:
        work = Work("M1", 1, size, size, sparsity).inputs(dtype, seed)
        return {name: work[name] for name in ("weight", "mask")}

    percent = f"{100 * sparsity:g}"
    nnz = round(size * size * (1 - sparsity))
    return Case(
        id=f"G4-pattern-{size}-{percent}",
        suite=SUITE,
        title=f"a new mask of {size} x {size}, {percent}% sparse, made ready for products",
        reason="dynamic sparse training: masks may change at every step",
        shapes=f"{size} x {size}, {percent}%",
        inputs=inputs,
        oracle=lambda state: [state["mask"].nonzero()[:, 1]],
        error=relative_distance,
        cost=Cost(0, 0, size * size + 12 * nnz),
        contenders=(
            Contender(
                OURS,
                OURS,
                lambda state: state["pattern"].update_(state["mask"]),
                prepare=lambda state: {**state, "pattern": sk.SparsityPattern(state["mask"])},
                finish=lambda pattern: [pattern.to_csr()[1]],
                group=OURS,
            ),
            Contender(
                "torch_to_csr",
                "(W * M).to_sparse_csr()",
                lambda state: (state["weight"] * state["mask"]).to_sparse_csr(),
                finish=lambda matrix: [matrix.col_indices()],
                group=_GROUP,
            ),
        ),
        most_copies=4,
    )
