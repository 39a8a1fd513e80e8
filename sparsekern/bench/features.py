"""Similarity operators on lists of features: inputs, contenders, oracle and cost of each.

:class:`FeatureWork` describes the work as data and makes the case of it; the families
:mod:`sparsekern.bench.cases.similarity` and :mod:`sparsekern.bench.cases.regularizers` say which
shapes are measured.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .. import dispatch
from ..ops import similarity
from ..ops.similarity import RBF, Linear
from ..ops.similarity.kernels import Kernel
from . import baselines, gate, peers
from .case import Case, Contender, Cost, sparsekern_contenders
from .inputs import double

Function: TypeAlias = Callable[[list[Tensor]], Tensor]
_CHUNK = 1 << 18  # values made at a time: small, so that no large temporary is left behind
_RANK = 16
_EAGER = "eager PyTorch"


@dataclass(frozen=True)
class FeatureWork:
    """One operator on seeded features, forward or forward and backward.

    Attributes:
        operation: the public function: ``"gram"`` (double-centred), ``"hsic"`` or ``"cka"`` of one
            pair, ``"hsic_matrix"`` or ``"cka_matrix"``, ``"cka_sum"`` (the CKA-SR loss).
        n: samples.
        dims: features of each layer.
        groups: how many consecutive layers each stage of ``"cka_sum"`` has, or each of the two
            lists of a matrix; by default a matrix is that of one list.
        kernel: the kernel function of all contenders.
        gradient: whether the gradient with respect to every layer is part of the work; always
            for ``"cka_sum"``.
    """

    operation: str
    n: int
    dims: tuple[int, ...]
    groups: tuple[int, ...] = ()
    kernel: Kernel = field(default_factory=Linear)
    gradient: bool = False

    def case(self, baseline_names: Sequence[str], **head: Any) -> Case:
        """The case of this work.

        Args:
            baseline_names: contenders beside sparsekern itself, in the order of the table.
            head: the fields of :class:`sparsekern.bench.case.CaseHead`, and those of
                :class:`sparsekern.bench.case.Case` that are to differ from what follows here.
        """
        fields: dict[str, Any] = {
            "contenders": self.contenders(baseline_names),
            "shapes": f"n={self.n}, d={span(self.dims)}",
            "inputs": self.inputs,
            "oracle": self.oracle,
            "error": self._error,
            "cost": self.cost,
            "tiny": self.tiny,
        }
        return Case(**fields | head)

    @property
    def backward(self) -> bool:
        """Whether the gradient with respect to every layer is part of the work."""
        return self.gradient or self.operation == "cka_sum"

    @property
    def _error(self) -> Callable[[Sequence[Tensor], Sequence[Tensor]], float]:
        if self.backward:
            return gate.value_and_gradient
        return gate.largest_difference if "cka" in self.operation else gate.relative_distance

    @property
    def feature_space(self) -> bool:
        """Whether the d x d products are fewer than the n x n ones (linear kernel, one pair)."""
        return (
            self.operation == "cka"
            and not self.backward
            and isinstance(self.kernel, Linear)
            and _pair_flops(self.n, *self.dims) < sum(symmetric_flops(self.n, d) for d in self.dims)
        )

    @property
    def cost(self) -> Cost:
        """Symmetric products counted half; each pass reads its inputs and writes its outputs."""
        features = self.n * sum(self.dims)
        if self.feature_space:
            return Cost(_pair_flops(self.n, *self.dims), features)
        forward = sum(symmetric_flops(self.n, d) for d in self.dims)
        output = self.n * self.n if self.operation == "gram" else 0
        if "matrix" in self.operation:
            rows = self.groups[0] if self.groups else (len(self.dims) + 1) / 2
            columns = self.groups[1] if self.groups else len(self.dims)
            # One product of two Gram matrices per pair, on one triangle of each.
            forward += int(rows * columns * self.n * (self.n + 1))
        if not self.backward:
            return Cost(forward, features + output)
        backward = sum(2 * self.n * self.n * d for d in self.dims)
        return Cost(forward + backward, 3 * features + 2 * output)

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Features of each layer, ``(n, d_l)``, without offset.

        Each layer is a random projection of a latent that changes by a fifth from layer to layer,
        plus noise: neighbours are similar, far layers less so, as in a trained network.
        """
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(self.n, _RANK, generator=generator)
        layers = []
        for d in self.dims:
            fresh = torch.randn(self.n, _RANK, generator=generator)
            latent = 0.8**0.5 * latent + 0.2**0.5 * fresh
            layer = torch.empty(self.n, d, dtype=dtype)
            columns = max(1, _CHUNK // self.n)
            for start in range(0, d, columns):
                part = layer[:, start : start + columns]
                width = part.shape[1]
                projection = torch.randn(_RANK, width, generator=generator) / _RANK**0.5
                noise = torch.randn(self.n, width, generator=generator)
                part.copy_(latent @ projection + 0.5 * noise)
            layers.append(layer.requires_grad_(self.backward))
        return layers

    def tiny(self, dtype: torch.dtype) -> list[Tensor]:
        """As many layers, of (8, 16)."""
        return replace(self, n=8, dims=(16,) * len(self.dims)).inputs(dtype)

    def oracle(self, features: list[Tensor]) -> list[Tensor]:
        """The plain-PyTorch reference in float64, or for d small the d x d formula."""
        xs: list[Tensor] = double(features)
        if self.feature_space:
            return [baselines.eager_feature_space(xs[0], xs[1])]
        with dispatch.backend("reference"):
            return self.outputs(self.sparsekern)(xs)

    def outputs(self, function: Function) -> Callable[[list[Tensor]], list[Tensor]]:
        """``[value]`` of a function of the features, or ``[value, gradient, ...]``."""
        if not self.backward:
            return lambda xs: [function(xs)]

        def differentiated(xs: list[Tensor]) -> list[Tensor]:
            value = function(xs)
            upstream = None if value.dim() == 0 else _upstream(value.shape).to(value)
            return [value.detach(), *torch.autograd.grad(value, xs, upstream)]

        return differentiated

    def sparsekern(self, xs: list[Tensor]) -> Tensor:
        """The work by sparsekern's public functions."""
        if self.operation == "gram":
            return similarity.gram(xs[0], self.kernel, center="double")
        if self.operation == "cka_sum":
            return similarity.cka_sum(self.split(xs), kernel=self.kernel)
        function: Callable[..., Tensor] = getattr(similarity, self.operation)
        if "matrix" in self.operation:
            return function(*(self.split(xs) if self.groups else [xs]), kernel=self.kernel)
        return function(xs[0], xs[1], kernel=self.kernel)

    def split(self, xs: list[Tensor]) -> list[list[Tensor]]:
        """Consecutive layers, group by group."""
        iterator = iter(xs)
        return [list(itertools.islice(iterator, size)) for size in self.groups]

    def contenders(self, names: Sequence[str]) -> tuple[Contender, ...]:
        """Sparsekern, and the baselines of these names (``"reference"`` among them or not)."""
        functions = _functions(self)
        ours, reference = sparsekern_contenders(self.outputs(self.sparsekern))
        result = [ours]
        for name in names:
            if name == "reference":
                result.append(reference)
                continue
            if name == "blocked_mm":
                result.append(_blocked_mm())
                continue
            label, group, peer = _DESCRIPTIONS[name]
            missing = functools.partial(peers.missing_reason, peer) if peer else None
            work = self.outputs(functions[name])
            result.append(Contender(name, label, work, missing=missing, group=group))
        return tuple(result)


# Label, column of the summary, package that must be there.
_DESCRIPTIONS = {
    "eager": ("eager", _EAGER, ""),
    "eager_centred": ("eager, column-centred", _EAGER, ""),
    "eager_backward": ("eager, own backward", _EAGER, ""),
    "pytorch_cka": ("pytorch-cka", "pytorch-cka", "pytorch_cka"),
    "pytorch_cka_hsic": ("pytorch-cka hsic_cross", "pytorch-cka", "pytorch_cka"),
    "torch_cka": ("torch_cka", "torch_cka", "torch_cka"),
    "torch_cka_hsic": ("torch_cka _HSIC", "torch_cka", "torch_cka"),
    "ckatorch": ("ckatorch", "ckatorch", "ckatorch"),
    "ckatorch_hsic1": ("ckatorch hsic1", "ckatorch", "ckatorch"),
    "authors": ("authors' formulation", "authors' formulation", ""),
}


def _functions(work: FeatureWork) -> dict[str, Function]:
    """All baselines of a work by name."""
    if work.operation == "cka_sum":
        return _loss(work)
    if work.operation == "gram":
        return {"eager": baselines.eager_gram}
    general: dict[str, Function] = {"eager": functools.partial(_general, work)}
    if work.backward or work.operation not in ("cka", "cka_matrix") or work.groups:
        return general
    if work.operation == "cka_matrix":
        return general | (_matrix() if isinstance(work.kernel, Linear) else {})
    return general | _pair(work)


def _blocked_mm() -> Contender:
    """The lower triangle by panels of torch.mm, on features that were centred beforehand.

    What a kernel made of torch's matrix product could reach at most: centring and mirroring,
    which the operator does, are left out of its time.
    """
    return Contender(
        "blocked_mm",
        "torch.mm, lower panels",
        baselines.lower_panels,
        prepare=lambda xs: baselines.center(xs[0]),
        finish=lambda lower: [lower.tril() + lower.tril(-1).T],
        group=_EAGER,
    )


def _general(work: FeatureWork, xs: list[Tensor]) -> Tensor:
    """Any kernel and any pairs, from one centred Gram matrix per layer."""
    ys = None
    if work.groups:
        xs, ys = work.split(xs)
    elif "matrix" not in work.operation:
        xs, ys = xs[:1], xs[1:]
    normalised = "cka" in work.operation
    value = baselines.eager_pairs(xs, ys, work.kernel, normalised, in_place=not work.backward)
    return value if "matrix" in work.operation else value.reshape(())


def _matrix() -> dict[str, Function]:
    return {
        "eager": lambda xs: baselines.eager_cka_matrix(xs, centred=False),
        "eager_centred": lambda xs: baselines.eager_cka_matrix(xs, centred=True),
        "authors": baselines.authors_cka_matrix,
        "pytorch_cka": peers.pytorch_cka_matrix,
        "pytorch_cka_hsic": peers.pytorch_cka_hsic_matrix,
        "torch_cka": peers.torch_cka_matrix,
        "torch_cka_hsic": peers.torch_cka_hsic_matrix,
        "ckatorch": peers.ckatorch_matrix,
        "ckatorch_hsic1": peers.ckatorch_hsic1_matrix,
    }


def _pair(work: FeatureWork) -> dict[str, Function]:
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    if isinstance(work.kernel, RBF):
        fraction = work.kernel.fraction
        functions = {
            "eager": functools.partial(baselines.eager_rbf, fraction=fraction),
            "ckatorch": functools.partial(peers.ckatorch_rbf_pair, fraction=fraction),
        }
    elif isinstance(work.kernel, Linear):
        functions = {
            "eager": baselines.eager_feature_space,
            "pytorch_cka": peers.pytorch_cka_pair,
            "torch_cka": peers.torch_cka_pair,
            "ckatorch": peers.ckatorch_pair,
        }
    return {name: _of_two(function) for name, function in functions.items()}


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda xs: function(xs[0], xs[1])


def _loss(work: FeatureWork) -> dict[str, Function]:
    functions: dict[str, Callable[[baselines.Groups], Tensor]] = {
        "eager": lambda groups: baselines.eager_loss(groups, centred=False),
        "eager_centred": lambda groups: baselines.eager_loss(groups, centred=True),
        "eager_backward": baselines.eager_backward_loss,
        "authors": baselines.authors_loss,
        "pytorch_cka": peers.pytorch_cka_loss,
        "ckatorch": peers.ckatorch_loss,
    }
    return {name: _of_groups(work, function) for name, function in functions.items()}


def _of_groups(work: FeatureWork, function: Callable[[baselines.Groups], Tensor]) -> Function:
    return lambda xs: function(work.split(xs))


@functools.cache
def _upstream(shape: torch.Size) -> Tensor:
    """A gradient to start from, the same for everyone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def symmetric_flops(n: int, d: int) -> int:
    """Operations of the lower triangle of ``X Xᵀ`` for X of shape (n, d), diagonal included."""
    return n * (n + 1) * d


def _pair_flops(n: int, dx: int, dy: int) -> int:
    """Operations of ``XᵀX``, ``YᵀY`` (triangles) and ``XᵀY`` for centred (n, dx) and (n, dy)."""
    return symmetric_flops(dx, n) + symmetric_flops(dy, n) + 2 * n * dx * dy


def span(dims: Sequence[int]) -> str:
    """One size, or the smallest and the largest."""
    return str(dims[0]) if min(dims) == max(dims) else f"{min(dims)} to {max(dims)}"
