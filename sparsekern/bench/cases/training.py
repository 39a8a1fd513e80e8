"""Training steps: with masked layers, against dense and masked-dense ones; with each method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparsekern as sk

from ...training.models import build_model, mlp
from .. import method_steps
from ..case import OURS, AnyCase, Case, Contender, Series
from ..gate import relative_distance

SUITE = "training"
SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.998)
# Gradients of a deep network in float32: ReLUs at the edge fall to either side.
_BOUNDS = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 1e-1, "float16": 1e-1}


@dataclass(frozen=True)
class StepWork:
    """One step of SGD with momentum: forward, backward, update.

    Attributes:
        network: its name in ids.
        title: its name in titles, with sizes.
        reason: why it.
        build: makes it, dense.
        images: the shape of a batch.
        sparsity: over all its linear and convolutional layers, shared out by ERK.
    """

    network: str
    title: str
    reason: str
    build: Callable[[], nn.Module]
    images: tuple[int, int, int, int]
    sparsity: float

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        """A batch of noise with labels."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(self.images, generator=generator).to(dtype)
        return {
            "images": images,
            "labels": torch.randint(0, 10, self.images[:1], generator=generator),
        }

    def models(self, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        """The network with masked layers, the dense one, and the masks by layer."""
        dense = self.build()
        sparse = sk.nn.sparsify(copy.deepcopy(dense), self.sparsity)
        masks = {
            name: layer.mask
            for name, layer in sparse.named_modules()
            if isinstance(layer, sk.nn.MaskedLinear | sk.nn.MaskedConv2d)
        }
        return sparse.to(dtype), dense.to(dtype), masks

    def step(self, kind: str, inputs: dict[str, Tensor]) -> _Step:
        """What takes a contender's steps: its model, optimizer and batch."""
        sparse, dense, masks = self.models(inputs["images"].dtype)
        model = sparse if kind == OURS else dense
        if kind == "masked_dense":
            for name, mask in masks.items():
                parametrize.register_parametrization(
                    model.get_submodule(name), "weight", _Mask(mask)
                )
            names = [f"{name}.parametrizations.weight.original" for name in masks]
        else:
            names = [f"{name}.weight" for name in masks]
        weights = [model.get_parameter(name) for name in names]
        kept = list(masks.values()) if kind == "masked_grad" else None
        if kept is not None:
            with torch.no_grad():
                for weight, mask in zip(weights, kept, strict=True):
                    weight.mul_(mask)
        return _Step(model, weights, kept, inputs)

    def oracle(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The loss of the first step and the masked gradients, in float64."""
        wide = {**inputs, "images": inputs["images"].double()}
        return self.step("masked_grad", wide)()

    def case(self) -> Case:
        """The registry's entry."""
        percent = f"{100 * self.sparsity:g}"

        def contender(kind: str, label: str, **rest: Any) -> Contender:
            return Contender(
                kind, label, lambda step: step(), lambda inputs: self.step(kind, inputs), **rest
            )

        return Case(
            id=f"step-{self.network}-{percent}",
            suite=SUITE,
            title=f"training step of {self.title}, {percent}% sparse",
            reason=self.reason,
            shapes=f"{self.network}, {percent}%",
            inputs=self.inputs,
            oracle=self.oracle,
            error=relative_distance,
            bounds=_BOUNDS,
            series=Series(f"step {self.network}", "sparsity", self.sparsity),
            dtypes=("float32",),
            summary=percent == "95",
            contenders=(
                contender(OURS, OURS, group=OURS),
                contender("masked_dense", "masked, then dense", group="eager PyTorch"),
                contender("masked_grad", "dense, gradients masked", group="eager PyTorch"),
                contender("dense", "dense, no mask", same_work=False),
            ),
            most_copies=1,
        )


class _Mask(nn.Module):
    """The parametrisation W⊙M."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class _Step:
    """Training steps of one model on one batch."""

    def __init__(
        self,
        model: nn.Module,
        weights: list[nn.Parameter],
        masks: list[Tensor] | None,
        inputs: dict[str, Tensor],
    ) -> None:
        self._model, self._weights, self._masks, self._inputs = model, weights, masks, inputs
        # A small rate: what is timed must not run off to infinity on noise.
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> list[Tensor]:
        self._optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self._model(self._inputs["images"]), self._inputs["labels"])
        torch.autograd.backward(loss)
        gradients = [w.grad for w in self._weights if w.grad is not None]
        if self._masks is not None:
            for gradient, mask in zip(gradients, self._masks, strict=True):
                gradient.mul_(mask)
        self._optimizer.step()
        return [loss.detach(), *gradients]


def _mlp(hidden: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp.MLP((hidden, hidden), 784, 10)


def _built(name: str) -> nn.Module:
    return build_model(name, channels=3, classes=10, seed=0)


_Network = tuple[str, str, str, Callable[[], nn.Module], tuple[int, int, int, int]]
_MLP_REASON = "hidden layers of a size that masks are made for"
_QUICK: list[_Network] = [
    ("mlp", "an MLP, 784-256-256-10, batch 64", _MLP_REASON, lambda: _mlp(256), (64, 1, 28, 28))
]
_FULL: list[_Network] = [
    (
        "mlp",
        "an MLP, 784-1024-1024-10, batch 128",
        _MLP_REASON,
        lambda: _mlp(1024),
        (128, 1, 28, 28),
    ),
    (
        "resnet20",
        "ResNet-20, 32 x 32 images, batch 128",
        "the network of CIFAR experiments: 3 x 3 convolutions of 16 to 64 channels",
        lambda: _built("resnet20"),
        (128, 3, 32, 32),
    ),
    (
        "vit",
        "a ViT (DeiT-Ti), 65 tokens of width 192, 12 blocks, batch 16",
        "linear layers among attention, norms and shortcuts, which no mask makes faster",
        lambda: _built("vit"),
        (16, 3, 32, 32),
    ),
]


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    sparsities = (0.9,) if quick else SPARSITIES
    networks = _QUICK if quick else _FULL
    steps: list[AnyCase] = [
        StepWork(*network, s).case() for network in networks for s in sparsities
    ]
    return [*steps, *method_steps.cases()]
