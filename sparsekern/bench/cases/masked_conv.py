"""Masked convolutions of ResNet-20/32, of ResNet-18 and in groups, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk

from ..case import AnyCase, Case, Contender, Cost, Series, sparsekern_contenders
from ..gate import relative_distance
from ..inputs import double
from .masked import gradients, with_pattern

SUITE = "masked"
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.998)
# batch, channels, height and width, filters, kernel, stride, groups
_SHAPES = {
    "r20-16": (128, 16, 32, 16, 3, 1, 1),
    "r20-32": (128, 32, 16, 32, 3, 1, 1),
    "r20-64": (128, 64, 8, 64, 3, 1, 1),
    "r20-down": (128, 16, 32, 32, 3, 2, 1),
    "r18-64": (16, 64, 56, 64, 3, 1, 1),
    "r18-128": (16, 128, 28, 128, 3, 1, 1),
    "r18-256": (16, 256, 14, 256, 3, 1, 1),
    "r18-512": (16, 512, 7, 512, 3, 1, 1),
    "r18-down": (16, 64, 56, 128, 3, 2, 1),
    "r18-shortcut": (16, 64, 56, 128, 1, 2, 1),
    "grouped": (16, 128, 28, 128, 3, 1, 32),
    "depthwise": (16, 128, 28, 128, 3, 1, 128),
}
_REASONS = {"r20": "a CIFAR ResNet-20's or -32's layer", "r18": "an ImageNet ResNet-18's layer"}
_QUICK = ("r20-32", "r20-down")
_QUICK_BATCH = 32
# Sums of up to 128 x 1024 products in float32, against float64.
_BOUNDS = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Work:
    """A masked convolution: sizes, and the share of weights removed."""

    batch: int
    channels: int
    size: int
    filters: int
    kernel: int
    stride: int
    groups: int
    sparsity: float

    @property
    def options(self) -> dict[str, Any]:
        """Stride, padding and groups."""
        return {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups}

    @property
    def out(self) -> int:
        """Height and width of the result."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
        """x, weight, mask, and the gradient of the result; x and weight are leaves."""
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        depth = self.channels // self.groups
        shape = (self.filters, depth, self.kernel, self.kernel)
        mask = torch.rand(shape, generator=generator) >= self.sparsity
        weight = random(*shape) / (depth * self.kernel**2) ** 0.5
        x = random(self.batch, self.channels, self.size, self.size)
        return {
            "x": x.to(dtype).requires_grad_(),
            "weight": weight.to(dtype).requires_grad_(),
            "mask": mask,
            "grad": random(self.batch, self.filters, self.out, self.out).to(dtype),
        }

    def oracle(self, inputs: dict[str, Any]) -> list[Tensor]:
        """In float64: the result, and the gradients of x and the weight."""
        return self.masked_dense(double(inputs))

    def masked_dense(self, inputs: dict[str, Any]) -> list[Tensor]:
        """Torch's convolution of the masked weight."""
        kept = inputs["weight"] * inputs["mask"]
        return gradients(inputs, F.conv2d(inputs["x"], kept, **self.options))

    def dense(self, inputs: dict[str, Any]) -> list[Tensor]:
        """Torch's convolution of the weight itself."""
        return gradients(inputs, F.conv2d(inputs["x"], inputs["weight"], **self.options))

    def ours(self, inputs: dict[str, Any]) -> list[Tensor]:
        """The layer's work with sparsekern."""
        x, weight, pattern = (inputs[name] for name in ("x", "weight", "pattern"))
        return gradients(inputs, sk.masked_conv2d(x, weight, pattern, **self.options))

    @property
    def cost(self) -> Cost:
        """Kept weights' products; x and grad twice, results once, and the dense gradient."""
        total = self.filters * self.channels // self.groups * self.kernel**2
        nnz = round(total * (1 - self.sparsity))
        x = self.batch * self.channels * self.size**2
        y = self.batch * self.filters * self.out**2
        return Cost(6 * self.batch * self.out**2 * nnz, 3 * x + 2 * y + total + nnz, 8 * nnz)

    def case(self, name: str) -> Case:
        """The registry's entry."""
        percent = f"{100 * self.sparsity:g}"
        shape = f"({self.batch}, {self.channels}, {self.size}, {self.size})"
        kernel = f"{self.filters} of {self.kernel} x {self.kernel}"
        geometry = f"{shape}, {kernel}" + (f", stride {self.stride}" if self.stride > 1 else "")
        geometry += f", {self.groups} groups" if self.groups > 1 else ""
        return Case(
            id=f"M4-{name}-{percent}",
            suite=SUITE,
            title=f"masked convolution {geometry}, {percent}% sparse, forward and backward",
            reason=_REASONS.get(name[:3], "few channels in a group, as in ResNeXt and MobileNet"),
            shapes=f"{geometry}, {percent}%",
            inputs=self.inputs,
            oracle=self.oracle,
            error=relative_distance,
            bounds=_BOUNDS,
            cost=self.cost,
            tiny=Work(1, 2, 4, 2, self.kernel, self.stride, min(self.groups, 2), 0.5).inputs,
            series=Series(
                f"M4 {name}",
                "sparsity",
                self.sparsity,
                order="kept",
                predicted=1 - self.sparsity,
            ),
            contenders=(
                *sparsekern_contenders(self.ours, prepare=with_pattern),
                Contender("masked_dense", "masked, then dense", self.masked_dense, group=_EAGER),
                Contender("dense", "dense, no mask", self.dense, same_work=False),
            ),
            summary=self.sparsity in (0.95, 0.99) and name in ("r20-32", "r18-128"),
            most_copies=4,
        )


_EAGER = "eager PyTorch"


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    return [
        Work(_QUICK_BATCH if quick else shape[0], *shape[1:], sparsity).case(name)
        for name, shape in _SHAPES.items()
        if not quick or name in _QUICK
        for sparsity in ((0.9,) if quick else SPARSITIES)
    ]
