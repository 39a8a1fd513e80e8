"""Other ways to multiply with a masked weight: torch's sparse layouts and scipy.

Conversions that users make once are not timed. "values given" takes the sparse matrix as the
trained tensor; "values from W" reads them from the dense weight at each call, as a layer does
whose optimizer works on W. Transposes are part of the work, whose operands are those of a layer.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from . import peers
from .case import Contender

_GROUP = "torch CSR"
_missing_scipy = functools.partial(peers.missing_reason, "scipy")


def contenders(kind: str, side: int = 16) -> list[Contender]:
    """The peers of a masked linear layer: M1 forward, M2 and M3 with gradients.

    ``side`` is that of BSR's square blocks.
    """
    if kind == "M1":
        return [
            _peer("torch_csr", "torch CSR, values given", _csr_forward),
            _peer("torch_csr_weight", "torch CSR, values from W", _csr_weight_forward),
            Contender(
                "torch_bsr" if side == 16 else f"torch_bsr{side}",
                f"torch BSR {side} x {side}",
                lambda state: [(state["bsr"] @ state["x"].T).T],
                prepare=functools.partial(_prepare_bsr, side=side),
                missing=missing_mkl,
            ),
            Contender(
                "scipy",
                "scipy CSR, values given",
                lambda state: state["scipy"] @ state["x_numpy"],
                prepare=_prepare_scipy,
                finish=lambda out: [torch.from_numpy(out).T],
                missing=_missing_scipy,
                group="scipy",
            ),
        ]
    if kind == "M2":
        return [
            _peer(
                "torch_csr_hand", "torch CSR by hand, values given", _csr_backward, dense_gradient
            ),
            _peer(
                "torch_csr_hand_weight", "torch CSR by hand, values from W", _csr_weight_backward
            ),
        ]
    return [
        _peer("torch_csr_dense", "torch CSR, dense gradient, values given", _csr_straight_through)
    ]


def conversions() -> list[Contender]:
    """The peers of :meth:`sparsekern.SparsityPattern.update_`."""

    def with_scipy(state: dict[str, Any]) -> list[Tensor]:
        from scipy.sparse import csr_matrix

        return [torch.from_numpy(csr_matrix(state["mask"].numpy()).indices)]

    return [
        Contender(
            "torch_to_csr",
            "(W * M).to_sparse_csr()",
            lambda state: (state["weight"] * state["mask"]).to_sparse_csr(),
            finish=lambda matrix: [matrix.col_indices()],
            group=_GROUP,
        ),
        Contender(
            "scipy_csr", "scipy csr_matrix(M)", with_scipy, missing=_missing_scipy, group="scipy"
        ),
    ]


def _peer(name: str, label: str, work: Any, finish: Any = None) -> Contender:
    return Contender(
        name, label, work, prepare=prepare_csr, finish=finish, missing=missing_mkl, group=_GROUP
    )


def missing_mkl() -> str:
    """Why torch's sparse products cannot be tried here, or an empty string."""
    return "" if torch.backends.mkl.is_available() else "torch was built without MKL"


def _csr(mask: Tensor, values: Tensor) -> Tensor:
    """With int32 indices, which MKL takes without a conversion."""
    matrix = mask.to_sparse_csr()
    pointer, index = matrix.crow_indices().int(), matrix.col_indices().int()
    return torch.sparse_csr_tensor(pointer, index, values, mask.shape)


def prepare_csr(inputs: dict[str, Any]) -> dict[str, Any]:
    """CSR of the masked weight and of its transpose, and where entries of one are in the other."""
    weight, mask = inputs["weight"].detach(), inputs["mask"]
    # Where an entry of the row order stands in the column order.
    positions = torch.zeros(mask.shape, dtype=torch.int64)
    positions[mask] = torch.arange(int(mask.sum()))
    return {
        **inputs,
        "x": inputs["x"].detach(),
        "weight": weight,
        "csr": _csr(mask, weight[mask]),
        "transposed": _csr(mask.T.contiguous(), weight.T[mask.T]),
        "positions": mask.flatten().nonzero()[:, 0],
        "permutation": positions.T[mask.T],
        "zeros": _csr(mask, torch.zeros(int(mask.sum()), dtype=weight.dtype)),
    }


def _csr_forward(state: dict[str, Any]) -> list[Tensor]:
    return [(state["csr"] @ state["x"].T).T]


def _csr_weight_forward(state: dict[str, Any]) -> list[Tensor]:
    torch.take(state["weight"], state["positions"], out=state["csr"].values())
    return _csr_forward(state)


def _transposed_product(state: dict[str, Any]) -> Tensor:
    torch.take(state["csr"].values(), state["permutation"], out=state["transposed"].values())
    product: Tensor = state["transposed"] @ state["grad"].T
    return product.T


def _csr_backward(state: dict[str, Any]) -> list[Tensor]:
    out = _csr_forward(state)[0]
    x_grad = _transposed_product(state)
    sampled = torch.sparse.sampled_addmm(
        state["zeros"], state["grad"].T, state["x"], beta=0.0, alpha=1.0
    )
    return [out, x_grad, sampled.values(), state["mask"]]


def dense_gradient(returned: list[Tensor]) -> list[Tensor]:
    """Results whose last is a gradient of kept entries, then the mask: that gradient unpacked."""
    out, x_grad, values, mask = returned
    return [out, x_grad, values.new_zeros(mask.shape).masked_scatter(mask, values)]


def _csr_weight_backward(state: dict[str, Any]) -> list[Tensor]:
    torch.take(state["weight"], state["positions"], out=state["csr"].values())
    out, x_grad, values, _ = _csr_backward(state)
    gradient = torch.zeros_like(state["weight"])
    gradient.view(-1).index_copy_(0, state["positions"], values)
    return [out, x_grad, gradient]


def _csr_straight_through(state: dict[str, Any]) -> list[Tensor]:
    out = _csr_forward(state)[0]
    return [out, _transposed_product(state), state["grad"].T @ state["x"]]


def _prepare_bsr(inputs: dict[str, Any], *, side: int) -> dict[str, Any]:
    weight, mask = inputs["weight"].detach(), inputs["mask"]
    side = side if weight.shape[0] % side == weight.shape[1] % side == 0 else 1
    return {"x": inputs["x"], "bsr": (weight * mask).to_sparse_bsr((side, side))}


def _prepare_scipy(inputs: dict[str, Any]) -> dict[str, Any]:
    from scipy.sparse import csr_matrix

    matrix = csr_matrix((inputs["weight"].detach() * inputs["mask"]).numpy())
    return {"scipy": matrix, "x_numpy": inputs["x"].detach().numpy().T}
