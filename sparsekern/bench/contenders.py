"""Who is measured on a case: sparsekern itself, plain PyTorch, the published code, other packages.

A contender is a name and a function from features to results: ``[matrix]`` for a similarity
matrix or scalar, ``[loss, gradient, ...]`` where the case includes the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import dispatch
from ..ops import similarity
from ..ops.similarity import RBF, Linear
from . import baselines, peers
from .cases import CASES, Case, FeatureCase

Call = Callable[[list[Tensor]], list[Tensor]]
OURS = "sparsekern"
LABELS = {
    OURS: "sparsekern",
    "reference": "sparsekern reference",
    "eager": "eager",
    "eager_centred": "eager, column-centred",
    "eager_backward": "eager, own backward",
    "authors": "authors' formulation",
    "pytorch_cka": "pytorch-cka",
    "pytorch_cka_hsic": "pytorch-cka hsic_cross",
    "torch_cka": "torch_cka",
    "torch_cka_hsic": "torch_cka _HSIC",
    "ckatorch": "ckatorch",
    "ckatorch_hsic1": "ckatorch hsic1",
    "torch_mul": "torch.mul",
    "custom_op": "torch custom_op",
}


@dataclass(frozen=True)
class Contender:
    """One way to do a case's work, or the reason why it cannot be tried here."""

    name: str
    call: Call | None
    missing: str = ""

    @property
    def label(self) -> str:
        """The name in tables."""
        return LABELS[self.name]


def compare_names(text: str | None) -> list[str] | None:
    """Parses ``--compare``: contender names; one that others start with selects them all.

    Raises:
        ValueError: for a name that no case has as a baseline.
    """
    if text is None:
        return None
    known = sorted({name for case in CASES for name in case.baselines})
    result: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        matches = [other for other in known if other == name or other.startswith(name + "_")]
        if not matches:
            raise ValueError(f"--compare must be among {', '.join(known)}, got {name!r}")
        result += matches
    return result


def baseline_names(case: Case, compare: Iterable[str] | None, backend: str) -> list[str]:
    """The baselines of a case, in its order, that ``--compare`` leaves in.

    The plain-PyTorch reference is left out where it is what sparsekern itself would run.
    """
    wanted = None if compare is None else set(compare)
    names = [name for name in case.baselines if wanted is None or name in wanted]
    return [name for name in names if name != "reference" or resolved(backend) != "reference"]


def resolved(backend: str) -> str:
    """The back end that a choice comes down to on CPU tensors."""
    if backend != "auto":
        return backend
    with dispatch.backend("auto"):
        return dispatch.select(torch.device("cpu"))


def build(name: str, case: FeatureCase, backend: str) -> Contender:
    """The contender of this name for this case."""
    for peer in peers.PACKAGES:
        if name == peer or name.startswith(peer + "_"):
            reason = peers.missing_reason(peer)
            if reason:
                return Contender(name, None, reason)
    if name in (OURS, "reference"):
        return Contender(name, _sparsekern(case, backend if name == OURS else "reference"))
    builder = {"cka_matrix": _matrix, "cka": _pair, "cka_sum": _loss}[case.operation]
    return Contender(name, builder(name, case))


def split_groups(xs: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """Consecutive layers, stage by stage."""
    iterator = iter(xs)
    return [[next(iterator) for _ in range(size)] for size in sizes]


def _sparsekern(case: FeatureCase, backend: str) -> Call:
    def work(xs: list[Tensor]) -> Tensor:
        if case.operation == "cka_sum":
            return similarity.cka_sum(split_groups(xs, case.groups), kernel=case.kernel)
        if case.operation == "cka":
            return similarity.cka(xs[0], xs[1], kernel=case.kernel)
        return similarity.cka_matrix(xs, kernel=case.kernel)

    call = _differentiated(work) if case.backward else _forward(work)

    def on_backend(xs: list[Tensor]) -> list[Tensor]:
        with dispatch.backend(backend):
            return call(xs)

    return on_backend


def _forward(work: Callable[[list[Tensor]], Tensor]) -> Call:
    def call(xs: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [work(xs)]

    return call


def _differentiated(work: Callable[[list[Tensor]], Tensor]) -> Call:
    """The value and its gradient; the inputs are leaves that require gradients."""

    def call(xs: list[Tensor]) -> list[Tensor]:
        value = work(xs)
        return [value.detach(), *torch.autograd.grad(value, xs)]

    return call


def _matrix(name: str, case: FeatureCase) -> Call:
    functions: dict[str, Callable[[list[Tensor]], Tensor]] = {
        "eager": lambda xs: baselines.eager_cka_matrix(xs, centred=False),
        "eager_centred": lambda xs: baselines.eager_cka_matrix(xs, centred=True),
        "authors": baselines.authors_cka_matrix,
        "pytorch_cka": peers.pytorch_cka_matrix,
        "pytorch_cka_hsic": peers.pytorch_cka_hsic_matrix,
        "torch_cka_hsic": peers.torch_cka_hsic_matrix,
        "ckatorch": peers.ckatorch_matrix,
        "ckatorch_hsic1": peers.ckatorch_hsic1_matrix,
    }
    if name == "torch_cka":
        return _forward(peers.torch_cka_matrix(len(case.dims)))
    return _forward(functions[name])


def _pair(name: str, case: FeatureCase) -> Call:
    if isinstance(case.kernel, RBF):
        fraction = case.kernel.fraction
        functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "eager": lambda x, y: baselines.eager_rbf(x, y, fraction),
            "ckatorch": lambda x, y: peers.ckatorch_rbf_pair(x, y, fraction),
        }
    else:
        assert isinstance(case.kernel, Linear)
        functions = {
            "eager": baselines.eager_feature_space,
            "pytorch_cka": peers.pytorch_cka_pair,
            "torch_cka": peers.torch_cka_pair,
            "ckatorch": peers.ckatorch_pair,
        }
    work = functions[name]
    return _forward(lambda xs: work(xs[0], xs[1]))


def _loss(name: str, case: FeatureCase) -> Call:
    functions: dict[str, Callable[[baselines.Groups], Tensor]] = {
        "eager": lambda groups: baselines.eager_loss(groups, centred=False),
        "eager_centred": lambda groups: baselines.eager_loss(groups, centred=True),
        "eager_backward": baselines.eager_backward_loss,
        "authors": baselines.authors_loss,
        "pytorch_cka": peers.pytorch_cka_loss,
        "ckatorch": peers.ckatorch_loss,
    }
    work = functions[name]
    return _differentiated(lambda xs: work(split_groups(xs, case.groups)))
