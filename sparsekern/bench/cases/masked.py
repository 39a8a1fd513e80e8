"""Masked linear layers over sparsity: forward, with the masked and the dense weight gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sparsekern as sk

from .. import masked_peers as peers
from .. import sparseprop
from ..case import OURS, AnyCase, Case, Contender, Cost, Series, sparsekern_contenders
from ..gate import relative_distance
from ..inputs import double

SUITE = "masked"
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.998)
_KINDS = {
    "M1": "forward",
    "M2": "forward and backward, masked weight gradient",
    "M3": "forward and backward, dense weight gradient",
}
# batch, in, out
_SHAPES = {
    (128, 512, 512): "a small network's hidden layer: all of it stays in cache",
    (256, 1024, 4096): "the widening layer of a transformer's MLP block",
    (64, 4096, 4096): "a wide layer at a small batch: the weight exceeds the caches",
    (1, 4096, 4096): "a single sample: bytes of the weight and of the indices decide",
}
_QUICK_PART = 4  # of the features on each side that --quick leaves
# Sums of up to 4096 products in float32, against float64.
_BOUNDS = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


# Masks with structure: name and the share of weights that they remove. torch's own format for 2:4
# is for GPUs; on the CPU blocks of the same size as BSR are the peer.
_STRUCTURES = (("16x16", 0.8), ("16x16", 0.9), ("4x4", 0.9), ("2:4", 0.5), ("1:4", 0.75))


@dataclass(frozen=True)
class Work:
    """A masked linear layer: ``kind`` M1, M2 or M3, sizes, and the share of weights removed.

    ``structure`` is empty, or the blocks ("4x4") or groups ("2:4") by which weights are kept.
    """

    kind: str
    batch: int
    columns: int
    rows: int
    sparsity: float
    structure: str = ""

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
        """x, weight, mask, and the gradient of the result; x and weight are leaves."""
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        mask = self.mask(generator)
        weight = (random(self.rows, self.columns) / self.columns**0.5).to(dtype)
        backward = self.kind != "M1"
        return {
            "x": random(self.batch, self.columns).to(dtype).requires_grad_(backward),
            "weight": weight.requires_grad_(backward),
            "mask": mask,
            "grad": random(self.batch, self.rows).to(dtype),
        }

    def mask(self, generator: torch.Generator) -> Tensor:
        """Which weights are kept."""
        rows, columns = self.rows, self.columns
        if ":" in self.structure:
            keep, of = map(int, self.structure.split(":"))
            order = torch.rand(rows, columns // of, of, generator=generator).argsort(dim=2)
            return (order < keep).view(rows, columns)
        height, width = map(int, (self.structure or "1x1").split("x"))
        kept = torch.rand(rows // height, columns // width, generator=generator) >= self.sparsity
        return kept.repeat_interleave(height, 0).repeat_interleave(width, 1)

    def oracle(self, inputs: dict[str, Any]) -> list[Tensor]:
        """In float64: the result, and the gradients of x and the weight."""
        wide = double(inputs)
        x, mask, grad = wide["x"].detach(), inputs["mask"], wide["grad"]
        kept = torch.where(mask, wide["weight"].detach(), 0)
        out = x @ kept.T
        if self.kind == "M1":
            return [out]
        product = grad.T @ x
        return [out, grad @ kept, product if self.kind == "M3" else torch.where(mask, product, 0)]

    @property
    def cost(self) -> Cost:
        """Kept entries' products; x, kept weights and results once, and the dense gradient."""
        nnz = round(self.rows * self.columns * (1 - self.sparsity))
        lanes, total = self.batch * nnz, self.rows * self.columns
        ends = self.batch * (self.rows + self.columns)
        if self.kind == "M1":
            return Cost(2 * lanes, ends + nnz, 4 * nnz)
        if self.kind == "M2":
            return Cost(6 * lanes, 3 * ends + 2 * nnz + total, 12 * nnz)
        return Cost(4 * lanes + 2 * self.batch * total, 3 * ends + 2 * nnz + total, 8 * nnz)

    def case(self, named: tuple[int, int, int] | None = None) -> Case:
        """The registry's entry; ``named`` is the full shape that a smaller one stands for."""
        shape = (self.batch, self.columns, self.rows)
        named = named or shape
        name = "x".join(map(str, named))
        percent = f"{100 * self.sparsity:g}"
        reason = _SHAPES.get(named, "a small layer")
        kind, structure = f"{percent}% sparse", ""
        if self.structure:
            kind, structure = f"{kind} in {self.structure}", self.structure.replace(":", "of") + "-"
            reason = "pruning by blocks or by groups, of which inner loops may make use"
        return Case(
            id=f"{self.kind}-{name}-{structure}{percent}",
            suite=SUITE,
            title=f"masked linear {shape}, {kind}, {_KINDS[self.kind]}",
            reason=reason,
            shapes=f"{shape}, {structure}{percent}%",
            inputs=self.inputs,
            oracle=self.oracle,
            error=relative_distance,
            bounds=_BOUNDS,
            cost=self.cost,
            tiny=Work(self.kind, 2, 4, 3, 0.5).inputs,
            series=None
            if self.structure
            else Series(
                f"{self.kind} {shape}",
                "sparsity",
                self.sparsity,
                order="batch · kept",
                predicted=self.batch * (1 - self.sparsity),
            ),
            contenders=self.contenders(),
            summary=self.sparsity in (0.9, 0.98)
            and self.batch > 1
            and self.kind != "M3"
            and not self.structure,
            most_copies=4,
        )

    def contenders(self) -> tuple[Contender, ...]:
        """Sparsekern, the same products of plain PyTorch, packages for sparse matrices."""
        ours, masked_dense, dense = _CONTENDERS[self.kind]
        both = sparsekern_contenders(ours, prepare=with_pattern)
        group = "eager PyTorch"
        found = [
            *both,
            Contender("masked_dense", "masked, then dense", masked_dense, group=group),
            Contender("dense", "dense, no mask", dense, same_work=False),
        ]
        if self.kind == "M1":
            found.append(
                Contender(
                    "compressed",
                    "sparsekern, compressed",
                    _compressed,
                    prepare=_with_compressed,
                    group=OURS,
                )
            )
        if self.kind != "M3":
            found.append(
                Contender(
                    "spmm",
                    "sparsekern spmm, values given",
                    _spmm if self.kind == "M1" else _spmm_grad,
                    prepare=_with_values,
                    finish=None if self.kind == "M1" else peers.dense_gradient,
                    group=OURS,
                )
            )
            for name, label, along in (
                ("packed", "sparsekern, packed", False),
                ("packed_features", "sparsekern, packed, features-major", True),
            ):
                found.append(
                    Contender(
                        name,
                        label,
                        _packed if self.kind == "M1" else _packed_grad,
                        prepare=functools.partial(_with_packed, along=along),
                        finish=None if self.kind == "M1" else peers.dense_gradient,
                        group=OURS,
                    )
                )
        blocks = self.structure.partition("x")[0] if "x" in self.structure else "16"
        found += peers.contenders(self.kind, int(blocks))
        found += sparseprop.contenders(self.kind)
        return tuple(found)


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    if quick:
        return [
            *(
                Work(
                    kind, shape[0], shape[1] // _QUICK_PART, shape[2] // _QUICK_PART, sparsity
                ).case(shape)
                for kind in _KINDS
                for shape in ((128, 512, 512), (64, 4096, 4096))
                for sparsity in ((0.5, 0.9, 0.98) if kind == "M1" else (0.9,))
            ),
            _update(4096, 0.9, _QUICK_PART),
        ]
    works = [
        Work(kind, *shape, sparsity)
        for kind in _KINDS
        for shape in _SHAPES
        for sparsity in SPARSITIES
        if kind == "M1" or (shape[0] > 1 and (kind == "M2" or sparsity >= 0.8))
    ]
    works += [
        Work(kind, 256, 1024, 4096, sparsity, structure)
        for kind in ("M1", "M2")
        for structure, sparsity in _STRUCTURES
    ]
    return [
        *(work.case() for work in works),
        *(_update(4096, sparsity) for sparsity in (0.8, 0.9, 0.98)),
    ]


def with_pattern(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with the mask as products take it."""
    return {**inputs, "pattern": sk.SparsityPattern(inputs["mask"])}


def _with_values(inputs: dict[str, Any]) -> dict[str, Any]:
    pattern = sk.SparsityPattern(inputs["mask"])
    values = pattern.gather(inputs["weight"].detach())
    return {**inputs, "pattern": pattern, "values": values.requires_grad_()}


def _with_compressed(inputs: dict[str, Any]) -> dict[str, Any]:
    pattern = sk.SparsityPattern(inputs["mask"])
    form = pattern.compress(inputs["weight"], keep_dense=False)
    return {"x": inputs["x"], "compressed": form}


def _compressed(inputs: dict[str, Any]) -> list[Tensor]:
    return [inputs["compressed"].linear(inputs["x"])]


def _with_packed(inputs: dict[str, Any], *, along: bool) -> dict[str, Any]:
    x, grad = inputs["x"].detach(), inputs["grad"]
    if along:
        x, grad = x.T.contiguous().T, grad.T.contiguous().T
    layer = sk.nn.PackedLinear(inputs["weight"].detach(), inputs["mask"])
    needed = inputs["x"].requires_grad
    return {"x": x.requires_grad_(needed), "grad": grad, "layer": layer, "mask": inputs["mask"]}


def _packed(inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [inputs["layer"](inputs["x"])]


def _packed_grad(inputs: dict[str, Any]) -> list[Tensor]:
    out = inputs["layer"](inputs["x"])
    leaves = (inputs["x"], inputs["layer"].values)
    gradients = torch.autograd.grad(out, leaves, inputs["grad"])
    return [out.detach(), *gradients, inputs["mask"]]


def gradients(inputs: dict[str, Any], out: Tensor) -> list[Tensor]:
    """A layer's result, and the gradients of x and the weight."""
    leaves = (inputs["x"], inputs["weight"])
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs["grad"])]


def _ours(inputs: dict[str, Any]) -> list[Tensor]:
    return [sk.masked_linear(inputs["x"], inputs["weight"], inputs["pattern"])]


def _ours_grad(inputs: dict[str, Any]) -> list[Tensor]:
    return gradients(inputs, _ours(inputs)[0])


def _ours_dense_grad(inputs: dict[str, Any]) -> list[Tensor]:
    x, weight, pattern = (inputs[name] for name in ("x", "weight", "pattern"))
    return gradients(inputs, sk.masked_linear(x, weight, pattern, weight_grad="dense"))


def _masked_dense(inputs: dict[str, Any]) -> list[Tensor]:
    return [inputs["x"] @ (inputs["weight"] * inputs["mask"]).T]


def _masked_dense_grad(inputs: dict[str, Any]) -> list[Tensor]:
    return gradients(inputs, _masked_dense(inputs)[0])


def _masked_straight_through(inputs: dict[str, Any]) -> list[Tensor]:
    kept = (inputs["weight"].detach() * inputs["mask"]).requires_grad_()
    out = inputs["x"] @ kept.T
    return [out.detach(), *torch.autograd.grad(out, (inputs["x"], kept), inputs["grad"])]


def _dense(inputs: dict[str, Any]) -> list[Tensor]:
    return [inputs["x"] @ inputs["weight"].T]


def _dense_grad(inputs: dict[str, Any]) -> list[Tensor]:
    return gradients(inputs, _dense(inputs)[0])


def _spmm(inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [sk.spmm(inputs["pattern"], inputs["values"], inputs["x"].T).T]


def _spmm_grad(inputs: dict[str, Any]) -> list[Tensor]:
    out = sk.spmm(inputs["pattern"], inputs["values"], inputs["x"].T).T
    leaves = (inputs["x"], inputs["values"])
    gradients = torch.autograd.grad(out, leaves, inputs["grad"])
    return [out.detach(), *gradients, inputs["mask"]]


_Call = Callable[[dict[str, Any]], list[Tensor]]
_CONTENDERS: dict[str, tuple[_Call, _Call, _Call]] = {
    "M1": (_ours, _masked_dense, _dense),
    "M2": (_ours_grad, _masked_dense_grad, _dense_grad),
    "M3": (_ours_dense_grad, _masked_straight_through, _dense_grad),
}


def _update(named: int, sparsity: float, part: int = 1) -> Case:
    """A changed mask brought into the form that products take; ``named / part`` on each side."""
    size = named // part

    def inputs(dtype: torch.dtype, seed: int) -> dict[str, Any]:
        work = Work("M1", 1, size, size, sparsity).inputs(dtype, seed)
        return {name: work[name] for name in ("weight", "mask")}

    def ours(state: dict[str, Any]) -> list[Tensor]:
        state["pattern"].update_(state["mask"])
        return [state["pattern"].tensors[2]]

    percent = f"{100 * sparsity:g}"
    nnz = round(size * size * (1 - sparsity))
    return Case(
        id=f"pattern-{named}-{percent}",
        suite=SUITE,
        title=f"a new mask of {size} x {size}, {percent}% sparse, made ready for products",
        reason="dynamic sparse training changes masks every few hundred steps",
        shapes=f"{size} x {size}, {percent}%",
        inputs=inputs,
        oracle=lambda state: [state["mask"].nonzero()[:, 1]],
        error=relative_distance,
        cost=Cost(0, 0, 2 * size * size + 12 * nnz),
        contenders=(
            Contender("sparsekern", "sparsekern", ours, prepare=with_pattern, group="sparsekern"),
            *peers.conversions(),
        ),
        most_copies=4,
    )
