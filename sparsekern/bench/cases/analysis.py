"""Whole comparisons: layers whose features are given, and end to end with the model's forward."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ... import dispatch
from ...analysis import CKA, compare_features
from ...ops.similarity import cka_matrix, hsic_matrix
from ...training.data import load_digits
from ...training.models import build_model
from .. import baselines, peers
from ..case import OURS, AnyCase, Case, Contender
from ..features import FeatureWork, span
from .similarity import RESNET18_CONVS

SUITE = "analysis"
_GIVEN = ("eager", "eager_centred", "pytorch_cka", "torch_cka", "ckatorch")
# The forward itself rounds in float32, and other packages multiply features as they are, far from
# zero: what is meant to be the same must still count, and every row shows its own error.
_BOUNDS = {"float32": 2e-3}


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    return [_given(quick), _resnet(quick).case(), _transformer(quick).case()]


def _given(quick: bool) -> AnyCase:
    """The model's time left out: its layers give out features that are there."""
    n, factor = (64, 16) if quick else (256, 1)
    work = FeatureWork("cka_matrix", n, tuple(d // factor for d in RESNET18_CONVS))
    ours = Contender(OURS, OURS, lambda xs: [_compared(xs)], group=OURS)
    operator = Contender("cka_matrix", "sk.cka_matrix alone", lambda xs: [cka_matrix(xs)])
    return work.case(
        _GIVEN,
        id="A1",
        suite=SUITE,
        title=f"comparison of 20 x 20 layers, n={n}, d {span(work.dims)}, features given",
        reason="what a comparison costs beside the model: hooks, Gram matrices, sums",
        contenders=(ours, operator, *work.contenders(_GIVEN)[1:]),
        dtypes=("float32",),
        summary=True,
    )


def _compared(xs: list[Tensor]) -> Tensor:
    features = {f"layer{index}": x for index, x in enumerate(xs)}
    result = compare_features(features, batch_size=len(xs[0]), mode="minibatch", progress=False)
    return result.matrix


@dataclass(frozen=True)
class Comparison:
    """One model against itself over a data set, forward included.

    Attributes:
        name: in the case's id.
        title: the work, in a few words.
        reason: why it.
        build: makes the model.
        data: makes all its inputs.
        layers: whether a module is compared, by name and module.
        batch: samples in a batch.
    """

    name: str
    title: str
    reason: str
    build: Callable[[], nn.Module]
    data: Callable[[], Tensor]
    layers: Callable[[str, nn.Module], bool]
    batch: int

    def model(self) -> tuple[nn.Module, list[str]]:
        """The model in evaluation mode, and the names of the layers compared."""
        model = self.build().eval()
        return model, [name for name, module in model.named_modules() if self.layers(name, module)]

    def loader(self, inputs: dict[str, Tensor]) -> DataLoader[Any]:
        """The data as every package reads it."""
        return DataLoader(TensorDataset(inputs["x"]), batch_size=self.batch)

    def oracle(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """HSIC by the reference in float64, summed over batches and divided once."""
        model, names = self.model()
        model.double()
        total = torch.zeros(len(names), len(names), dtype=torch.float64)
        with _Features(model, names, lambda x: x.flatten(1).clone()) as taken, torch.no_grad():
            for batch in inputs["x"].double().split(self.batch):
                model(batch)
                with dispatch.backend("reference"):
                    total += hsic_matrix([taken.found[name] for name in names])
        return [baselines.normalise(total)]

    def case(self) -> Case:
        """The registry's entry."""

        def contender(name: str, label: str, make: Callable[..., Any], **rest: Any) -> Contender:
            return Contender(name, label, lambda run: run(), functools.partial(make, self), **rest)

        def peer(name: str, label: str, make: Callable[..., Any]) -> Contender:
            missing = functools.partial(peers.missing_reason, name)
            return contender(name, label, make, missing=missing, group=label)

        return Case(
            id=f"A2-{self.name}",
            suite=SUITE,
            title=self.title,
            reason=self.reason,
            shapes=self.name,
            contenders=(
                contender(OURS, OURS, _ours, group=OURS),
                contender("exact_mode", "sparsekern, exact mode", _exact, same_work=False),
                contender("eager", "eager", _eager, group="eager PyTorch"),
                peer("pytorch_cka", "pytorch-cka", _pytorch_cka),
                peer("torch_cka", "torch_cka", _torch_cka),
                peer("ckatorch", "ckatorch", _ckatorch),
                contender("forward", "the model's forward alone", _forward, same_work=False),
            ),
            inputs=lambda _dtype, _seed: {"x": self.data()},
            oracle=self.oracle,
            bounds=_BOUNDS,
            dtypes=("float32",),
            most_copies=1,
            summary=True,
        )


class _Features:
    """Keeps what layers put out, reduced by a function; a context manager."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], reduce: Callable[[Tensor], Tensor]
    ) -> None:
        self.found: dict[str, Tensor] = {}
        self._layers = [(name, model.get_submodule(name)) for name in names]
        self._reduce = reduce
        self._handles: list[Any] = []

    def __enter__(self) -> _Features:
        for name, module in self._layers:
            self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.found[name] = self._reduce(output)

        return hook


_Run = Callable[[], list[Tensor]]


def _ours(work: Comparison, inputs: dict[str, Tensor], mode: str = "minibatch") -> _Run:
    model, names = work.model()
    comparison, loader = CKA(model, layers1=names, mode=mode), work.loader(inputs)
    return lambda: [comparison.compare(loader, progress=False).matrix]


def _exact(work: Comparison, inputs: dict[str, Tensor]) -> _Run:
    return _ours(work, inputs, "exact")


def _eager(work: Comparison, inputs: dict[str, Tensor]) -> _Run:
    """A Gram matrix in each hook, all centred in place, one product for all pairs."""
    model, names = work.model()
    loader = work.loader(inputs)

    def gram(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat @ flat.T

    def run() -> list[Tensor]:
        total = torch.zeros(len(names), len(names))
        with _Features(model, names, gram) as taken, torch.no_grad():
            for (batch,) in loader:
                model(batch)
                n = len(batch)
                grams = torch.stack([taken.found[name] for name in names])
                v = baselines.u_center_(grams).flatten(1)
                total += v @ v.T / (n * (n - 3))
        return [baselines.normalise(total)]

    return run


def _forward(work: Comparison, inputs: dict[str, Tensor]) -> _Run:
    model, _ = work.model()
    loader = work.loader(inputs)

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [model(batch) for (batch,) in loader][-1:]

    return run


def _torch_cka(work: Comparison, inputs: dict[str, Tensor]) -> _Run:
    model, names = work.model()
    loader = work.loader(inputs)
    with peers.quiet():
        comparison = importlib.import_module("torch_cka").CKA(
            model, model, model1_layers=names, model2_layers=names
        )

    def run() -> list[Tensor]:
        with peers.quiet(), torch.no_grad():
            comparison.compare(loader)
        return [comparison.export()["CKA"]]

    return run


def _pytorch_cka(work: Comparison, inputs: dict[str, Tensor]) -> _Run:
    model, names = work.model()
    loader = work.loader(inputs)
    compute = importlib.import_module("cka").compute_cka

    def run() -> list[Tensor]:
        with peers.quiet():
            return list(
                compute(
                    model, model, [loader], layers=names, device=torch.device("cpu"), progress=False
                )
            )

    return run


def _ckatorch(work: Comparison, inputs: dict[str, Tensor]) -> _Run:
    model, names = work.model()
    loader = work.loader(inputs)
    with peers.quiet():
        comparison = importlib.import_module("ckatorch").CKA(model, model, names)

    def run() -> list[Tensor]:
        with peers.quiet():
            return [comparison(loader, epochs=1)]

    return run


def _resnet(quick: bool) -> Comparison:
    images = 96 if quick else 512
    return Comparison(
        name="resnet20",
        title=f"ResNet-20 against itself, {images} digits, its 20 weight layers, end to end",
        reason="a small network on small images: the comparison outweighs the forward",
        build=lambda: build_model("resnet20", channels=1, classes=10, seed=0, size=8),
        data=lambda: load_digits(0).train.batch(torch.arange(images)),
        layers=lambda _name, module: isinstance(module, nn.Conv2d | nn.Linear),
        batch=48 if quick else 256,
    )


def _transformer(quick: bool) -> Comparison:
    samples, tokens, width = (16, 8, 32) if quick else (256, 32, 256)

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True)
            return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def data() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(samples, tokens, width, generator=generator)

    return Comparison(
        name="transformer",
        title=f"12 encoder layers against themselves, {samples} x {tokens} tokens, end to end",
        reason="a transformer with random weights: the forward outweighs the comparison",
        build=build,
        data=data,
        layers=lambda _name, module: isinstance(module, nn.TransformerEncoderLayer),
        batch=8 if quick else 128,
    )
