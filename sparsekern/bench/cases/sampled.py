"""Sampled dense-dense products: the gradient of a masked weight, and what is learned through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sparsekern as sk

from .. import masked_peers as peers
from ..case import AnyCase, Case, Contender, Cost, sparsekern_contenders
from ..gate import relative_distance
from ..inputs import double
from .masked import Work as Layer
from .masked import with_pattern

_QUICK_PART = 4  # of the features on each side that --quick leaves


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    size = 4096 // _QUICK_PART if quick else 4096
    return [
        SampledWork(64, size, sparsity, backward).case()
        for backward in (False, True)
        for sparsity in ((0.9,) if quick else (0.9, 0.98))
    ]


@dataclass(frozen=True)
class SampledWork:
    """The entries of ``gradᵀ x`` that a mask keeps; with ``backward`` the gradients of both too.

    ``grad`` and ``x`` are (batch, size): the operands of a linear layer's weight gradient.
    """

    batch: int
    size: int
    sparsity: float
    backward: bool

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
        """A layer's x, mask and gradient of the result, and a gradient of what is sampled."""
        layer = Layer("M1", self.batch, self.size, self.size, self.sparsity).inputs(dtype, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        upstream = torch.randn(int(layer["mask"].sum()), generator=generator).to(dtype)
        for name in ("x", "grad"):
            layer[name].requires_grad_(self.backward)
        return {**layer, "upstream": upstream}

    def oracle(self, inputs: dict[str, Any]) -> list[Tensor]:
        """In float64, through the whole product."""
        wide = double(inputs)
        x, grad, mask = wide["x"].detach(), wide["grad"].detach(), inputs["mask"]
        values = (grad.T @ x)[mask]
        if not self.backward:
            return [values]
        product_grad = torch.zeros(mask.shape, dtype=x.dtype)
        product_grad[mask] = wide["upstream"]
        return [values, (product_grad @ x.T).T, grad @ product_grad]

    @property
    def cost(self) -> Cost:
        """Kept entries' products; operands once in each direction, indices with each product."""
        nnz = round(self.size**2 * (1 - self.sparsity))
        products = 3 if self.backward else 1
        operands = 2 * self.batch * self.size
        values = (3 * operands + 2 * nnz) if self.backward else (operands + nnz)
        return Cost(2 * products * self.batch * nnz, values, 4 * products * nnz)

    def case(self) -> Case:
        """The registry's entry."""
        percent = f"{100 * self.sparsity:g}"
        shape = f"({self.size}, {self.batch}, {self.size})"
        direction = "forward and backward" if self.backward else "forward"
        return Case(
            id=f"sddmm-grad-{percent}" if self.backward else f"sddmm-{percent}",
            suite="masked",
            title=f"sampled product {shape}, {percent}% left out, {direction}",
            reason="the weight gradient of a wide layer at a small batch, kept entries alone",
            shapes=f"{shape}, {percent}%",
            inputs=self.inputs,
            oracle=self.oracle,
            error=relative_distance,
            cost=self.cost,
            tiny=SampledWork(2, 4, 0.5, self.backward).inputs,
            contenders=(
                *sparsekern_contenders(
                    _ours_grad if self.backward else _ours, prepare=with_pattern
                ),
                Contender(
                    "dense_sampled",
                    "dense, then sampled",
                    _dense_grad if self.backward else _dense,
                    prepare=_with_positions,
                    group="eager PyTorch",
                ),
                Contender(
                    "torch_csr_sampled",
                    "torch sampled_addmm",
                    _csr_grad if self.backward else _csr,
                    prepare=peers.prepare_csr,
                    missing=peers.missing_mkl,
                    group="torch CSR",
                ),
            ),
            most_copies=4,
        )


def _with_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    x, grad = inputs["x"].detach(), inputs["grad"].detach()
    return {**inputs, "x": x, "grad": grad, "positions": inputs["mask"].flatten().nonzero()[:, 0]}


def _ours(inputs: dict[str, Any]) -> list[Tensor]:
    return [sk.sddmm(inputs["grad"].T, inputs["x"], inputs["pattern"])]


def _ours_grad(inputs: dict[str, Any]) -> list[Tensor]:
    (values,) = _ours(inputs)
    leaves = (inputs["grad"], inputs["x"])
    return [values.detach(), *torch.autograd.grad(values, leaves, inputs["upstream"])]


def _dense(state: dict[str, Any]) -> list[Tensor]:
    return [torch.take(state["grad"].T @ state["x"], state["positions"])]


def _dense_grad(state: dict[str, Any]) -> list[Tensor]:
    """Backward by hand, which spares autograd's second look at the positions."""
    (values,) = _dense(state)
    x, grad = state["x"], state["grad"]
    product_grad = torch.zeros(state["mask"].shape, dtype=x.dtype)
    product_grad.view(-1).index_copy_(0, state["positions"], state["upstream"])
    return [values, (product_grad @ x.T).T, grad @ product_grad]


def _csr(state: dict[str, Any]) -> list[Tensor]:
    left, right = state["grad"].detach().T, state["x"]
    sampled = torch.sparse.sampled_addmm(state["zeros"], left, right, beta=0.0, alpha=1.0)
    return [sampled.values()]


def _csr_grad(state: dict[str, Any]) -> list[Tensor]:
    (values,) = _csr(state)
    state["csr"].values().copy_(state["upstream"])
    torch.take(state["upstream"], state["permutation"], out=state["transposed"].values())
    x, grad = state["x"], state["grad"].detach()
    return [values, (state["csr"] @ x.T).T, (state["transposed"] @ grad.T).T]
