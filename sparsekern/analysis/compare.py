"""CKA between the layers of one or two models, over a data set."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..interrupt import StopRequest
from ..nn.wrappers import unwrap
from ..ops import checks
from ..ops.similarity.kernels import Kernel, Linear, resolve_kernel
from .batches import Call, InputRule, call_of, paired
from .collective import Team, TeamError
from .engine import Engine, Outcome
from .exact import ExactEngine
from .features import FeatureRule, SpatialRule, TokenRule
from .layers import LayerSpec, Selection, callable_layers, select_layers
from .minibatch import MinibatchEngine
from .plan import Budget
from .progress import Progress
from .result import CKAResult
from .taps import Key, Taps

MODES = ("minibatch", "exact")
ESTIMATORS = ("unbiased", "biased")
STANDARD_ERRORS = ("jackknife", "bootstrap", None)


class CKA:
    """Compares all layers of one model, or of two, over a data set.

    ``mode="minibatch"`` adds up HSIC over batches and divides once at the end (Nguyen et al. 2021),
    in memory for one batch's Gram matrices. ``mode="exact"`` gives the CKA of the whole data set,
    as if it were one batch. Both read the data once. Forwards run without gradients in the mode
    that the models are in; the models are changed in nothing else, except that ``device`` moves
    them.

    Args:
        model1: the network whose layers are the rows.
        model2: that of the columns; None compares ``model1`` with itself.
        layers1: which layers, see :func:`~sparsekern.analysis.layers.select_layers`; None for all
            modules without children.
        layers2: the same for the columns; None for ``layers1``.
        kernel: as in :func:`sparsekern.gram`.
        estimator: ``"unbiased"``, which does not depend on the batch size, or ``"biased"``, which
            tends to 1 for features wider than the batch.
        mode: ``"minibatch"`` or ``"exact"``.
        device: where to run the models; None for where they are.
        dtype: what features are converted to; None for their own.
        tokens: how sequences become features, see
            :class:`~sparsekern.analysis.features.FeatureRule`.
        spatial: how maps become features, see there.
        inputs: a function from a batch to what the models are called with, where that cannot be
            told from the batch.
        names: of the two models, for the result.
        standard_error: ``"jackknife"`` or ``"bootstrap"`` over batches, or None.
        permutations: of a permutation test in each batch; 0 for none.
        seed: of permutations and bootstrap.
        memory_budget: bytes that the exact mode may hold of sums and features.
        disk_budget: bytes of features that the exact mode may write to files.
        spill_folder: where; None for the system's folder of temporary files.
        spill_dtype: in which dtype; None for their own (float32 at least). float16 halves the
            files and costs digits: CKA is then right to about 1e-3.
        distributed: whether ranks of torch.distributed share the work, each with its part of the
            data; None for yes where a process group is initialised.

    Raises:
        TypeError, ValueError: for arguments out of range, and layers that match nothing.

    Example:
        >>> result = sparsekern.analysis.CKA(model, layers1="blocks").compare(loader)
        >>> result.plot()
    """

    def __init__(
        self,
        model1: nn.Module,
        model2: nn.Module | None = None,
        *,
        layers1: LayerSpec = None,
        layers2: LayerSpec = None,
        kernel: str | Kernel = "linear",
        estimator: str = "unbiased",
        mode: str = "minibatch",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        tokens: TokenRule = "flatten",
        spatial: SpatialRule = "flatten",
        inputs: InputRule | None = None,
        names: tuple[str, str] | None = None,
        standard_error: str | None = "jackknife",
        permutations: int = 0,
        seed: int = 0,
        memory_budget: int = 4 << 30,
        disk_budget: int = 32 << 30,
        spill_folder: str | Path | None = None,
        spill_dtype: torch.dtype | None = None,
        distributed: bool | None = None,
    ) -> None:
        for argument, model in (("model1", model1), ("model2", model2)):
            if not isinstance(model, nn.Module) and (argument == "model1" or model is not None):
                raise TypeError(f"{argument} must be a torch.nn.Module, got {type(model).__name__}")
        _one_of("mode", mode, MODES)
        _one_of("estimator", estimator, ESTIMATORS)
        _one_of("standard_error", standard_error, STANDARD_ERRORS)
        if checks.whole_number(permutations, "permutations") < 0:
            raise ValueError(f"permutations must be at least 0, got {permutations}")
        if permutations and mode == "exact":
            raise ValueError('permutations need mode="minibatch": they are drawn in each batch')
        self.model1 = model1
        self.model2 = model1 if model2 is None else model2
        self.same_model = self.model1 is self.model2
        self.kernel = resolve_kernel(kernel)
        self.estimator, self.mode, self.device = estimator, mode, device
        self._rule = FeatureRule(tokens, spatial, dtype)
        self._inputs, self._team = inputs, Team(distributed)
        self._standard_error, self._permutations, self._seed = standard_error, permutations, seed
        self._budget = Budget(memory_budget, disk_budget, spill_folder, spill_dtype)
        self._selection1 = select_layers(model1, layers1, "layers1")
        second = layers1 if layers2 is None else layers2
        hint = "layers2" if layers2 is not None else "layers1 (taken for model2 too; give layers2)"
        self._selection2 = select_layers(self.model2, second, hint)
        self.names = names or self._names_of_classes()

    def compare(
        self,
        loader1: Iterable[Any],
        loader2: Iterable[Any] | None = None,
        max_samples: int | None = None,
        progress: bool = True,
    ) -> CKAResult:
        """Runs the models on the data and compares their layers.

        Args:
            loader1: batches: tensors, ``(inputs, ...)``, or mappings (an ``attention_mask`` is the
                padding mask); or one tensor as the only batch.
            loader2: batches of the same samples, in the same order and sizes, as the second model
                takes them; None gives both models the same batch.
            max_samples: stop after so many samples (on each rank).
            progress: shows the plan and the progress where the output is a terminal.

        Returns:
            The result. After Ctrl-C that of the batches so far, with ``partial`` set; with no
            batch complete, KeyboardInterrupt is raised.

        Raises:
            ValueError: for no or too few samples, loaders out of step, layers that were named and
                not called, features that are not finite (the layer is named).
        """
        if max_samples is not None and checks.whole_number(max_samples, "max_samples") < 1:
            raise ValueError(f"max_samples must be at least 1, got {max_samples}")
        models = [self.model1] if self.same_model else [self.model1, self.model2]
        for index, model in enumerate(models, 1):
            if self.device is not None:
                model.to(self.device)
            if any(module.training for module in model.modules()):
                warnings.warn(
                    f"model{index} is in training mode: dropout makes features random and "
                    "BatchNorm makes them depend on the batch and updates its statistics; call "
                    "model.eval() first unless that is meant",
                    stacklevel=2,
                )
        engine = self._engine()
        with ExitStack() as stack:
            taps = [stack.enter_context(tap) for tap in self._taps(engine)]
            stack.callback(engine.close)
            failure: BaseException | None = None
            partial = False
            try:
                partial = self._run(engine, taps, loader1, loader2, max_samples, progress)
            except TeamError:
                raise
            except Exception as error:
                failure = error
            partial = any(self._team.meet("end", partial, failure))
            rows, columns = self._labels(taps)
            rows, columns = self._team.same_labels(rows, columns)
            return self._result(engine, taps, rows, columns, partial)

    def plan(
        self,
        loader1: Iterable[Any],
        loader2: Iterable[Any] | None = None,
        max_samples: int | None = None,
    ) -> str:
        """What :meth:`compare` would take of memory, files and operations, in a line.

        One forward of the first batch tells the layers and their widths; nothing is compared.
        ``compare`` shows the same line before it starts, where the output is a terminal.

        Args:
            loader1: as for ``compare``; its first batches are read.
            loader2: as for ``compare``.
            max_samples: as for ``compare``.

        Raises:
            ValueError: as ``compare``; and for the exact mode where no way fits into the budgets.
        """
        engine = self._engine()
        batches = paired(loader1, loader2, least=engine.least, max_samples=max_samples)
        batch = next(batches, None)
        if batch is None:
            raise ValueError("the loader gave no batches")
        with ExitStack() as stack:
            taps = [stack.enter_context(tap) for tap in self._taps(engine)]
            stack.callback(engine.close)
            items, samples = self._forward(taps, batch)
            select = self._select(taps[0].keys) if self.same_model else None
            return engine.start(items, samples, _samples_ahead(loader1, max_samples), select)

    def _names_of_classes(self) -> tuple[str, str]:
        first, second = _class_name(self.model1), _class_name(self.model2)
        if first == second and not self.same_model:
            return f"{first} (1)", f"{second} (2)"
        return first, second

    def _engine(self) -> Engine:
        if self.mode == "exact":
            return ExactEngine(
                self.kernel, self.estimator, self.same_model, self._budget, self._team
            )
        return MinibatchEngine(
            self.kernel,
            self.estimator,
            self.same_model,
            self._team,
            standard_error=self._standard_error,
            permutations=self._permutations,
            seed=self._seed,
        )

    def _taps(self, engine: Engine) -> list[Taps]:
        if self.same_model:
            modules = {**self._selection1.modules, **self._selection2.modules}
            order = [name for name in callable_layers(self.model1) if name in modules]
            both = Selection(
                {name: modules[name] for name in order},
                self._selection1.named | self._selection2.named,
            )
            return [Taps(self.model1, both, self._rule, engine.reduce, "model1")]
        return [
            Taps(self.model1, self._selection1, self._rule, engine.reduce, "model1"),
            Taps(self.model2, self._selection2, self._rule, engine.reduce, "model2"),
        ]

    def _run(
        self,
        engine: Engine,
        taps: list[Taps],
        loader1: Iterable[Any],
        loader2: Iterable[Any] | None,
        max_samples: int | None,
        progress: bool,
    ) -> bool:
        """Feeds every batch to the engine; returns whether it was interrupted."""
        batches = paired(loader1, loader2, least=engine.least, max_samples=max_samples)
        total = _samples_ahead(loader1, max_samples)
        shown = progress and self._team.rank == 0
        with Progress(total, enabled=shown) as bar, StopRequest(signal.SIGINT) as stop:
            while not stop.requested:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        break
                    items, samples = self._forward(taps, batch)
                except KeyboardInterrupt:
                    stop.requested = True
                    break
                if engine.samples == 0:
                    select = self._select(taps[0].keys) if self.same_model else None
                    bar.note(engine.start(items, samples, total, select))
                engine.add(items, samples, _names(taps))
                bar.advance(samples)
            if stop.requested and engine.samples == 0:
                raise KeyboardInterrupt
            if stop.requested:
                warnings.warn(
                    f"interrupted: the result is that of the first {engine.samples} samples",
                    stacklevel=3,
                )
        if engine.samples == 0 and not self._team.active:
            raise ValueError("the loader gave no batches")
        return stop.requested

    def _forward(self, taps: list[Taps], pair: tuple[Any, Any]) -> tuple[list[list[Any]], int]:
        items, samples = [], 0
        for tap, batch in zip(taps, pair, strict=False):
            call = self._call(tap.model, batch)
            engine_items = tap.run(call.args, call.kwargs, call.samples, call.mask)
            items.append(engine_items)
            if samples and samples != call.samples:
                raise ValueError(
                    f"model1 got {samples} samples and model2 {call.samples} in one batch"
                )
            samples = call.samples
        return items, samples

    def _call(self, model: nn.Module, batch: Any) -> Call:
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        if parameter is None and self.device is not None:
            device = torch.device(self.device)
        return call_of(model, batch, self._inputs, device)

    def _select(self, keys: Sequence[Key]) -> tuple[list[int], list[int]]:
        chosen = self._selection1.modules, self._selection2.modules
        first, second = ([i for i, key in enumerate(keys) if key[0] in one] for one in chosen)
        return first, second

    def _labels(self, taps: list[Taps]) -> tuple[list[str], list[str]]:
        if not self.same_model:
            return taps[0].names(), taps[1].names()
        names = taps[0].names()
        rows, columns = self._select(taps[0].keys)
        return [names[i] for i in rows], [names[i] for i in columns]

    def _chance_levels(self, taps: list[Taps], outcome: Outcome) -> Tensor | None:
        """Biased linear CKA of independent features, ``√(pq / ((n + p)(n + q)))``."""
        if self.estimator != "biased" or not isinstance(self.kernel, Linear):
            return None
        shapes = [tap.shapes for tap in taps]
        if self.same_model:
            rows, columns = self._select(taps[0].keys)
            shapes = [[shapes[0][i] for i in chosen] for chosen in (rows, columns)]
        samples = outcome.samples / (outcome.batches if self.mode == "minibatch" else 1)
        first, second = (
            torch.tensor([p / (samples * each + p) for each, p in one], dtype=torch.float64).sqrt()
            for one in shapes
        )
        levels: list[Tensor] = self._team.gather(torch.outer(first, second))
        return next(one for one in levels if one.numel() > 0)  # no data on a rank, no layers

    def _result(
        self, engine: Engine, taps: list[Taps], rows: list[str], columns: list[str], partial: bool
    ) -> CKAResult:
        outcome = engine.finish(len(rows), len(columns))
        first, second = (one.cpu() for one in outcome.selves)
        for names, values, argument in ((rows, first, "model1"), (columns, second, "model2")):
            bad = [n for n, v in zip(names, values.tolist(), strict=True) if not math.isfinite(v)]
            if bad:
                raise ValueError(
                    f"the output of {', '.join(map(repr, bad))} of {argument} holds values that "
                    "are not finite (NaN or infinity), or too large to multiply"
                )
        constant = [
            [name for name, value in zip(names, values.tolist(), strict=True) if value == 0]
            for names, values in ((rows, first), (columns, second))
        ]
        if constant[0] or constant[1]:
            listed = ", ".join(dict.fromkeys(constant[0] + constant[1]))
            warnings.warn(
                f"layers without variation between samples, whose CKA is set to 0: {listed}",
                stacklevel=3,
            )
        return CKAResult(
            matrix=outcome.matrix.cpu(),
            rows=rows,
            columns=columns,
            n=outcome.samples,
            estimator=self.estimator,
            kernel=_kernel_text(self.kernel),
            mode=self.mode,
            batches=outcome.batches,
            models=self.names,
            same_model=self.same_model,
            standard_error=_on_cpu(outcome.standard_error),
            p_values=_on_cpu(outcome.p_values),
            chance=1 / math.sqrt(outcome.pairs)
            if self.estimator == "unbiased" and outcome.pairs > 0
            else math.nan,
            chance_levels=self._chance_levels(taps, outcome),
            constant_rows=constant[0],
            constant_columns=constant[1],
            partial=partial,
        )


def _samples_ahead(loader: Iterable[Any], most: int | None) -> int | None:
    """How many samples a loader will give, as far as it tells."""
    count: int | None = None
    if isinstance(loader, Tensor):
        count = len(loader)
    else:
        try:
            sampler, drops = getattr(loader, "sampler", None), getattr(loader, "drop_last", False)
            size = getattr(loader, "batch_size", None)
            if sampler is not None and size:
                count = len(sampler)
                count -= count % size if drops else 0
        except TypeError:  # a sampler without a length
            count = None
    return most if count is None else (count if most is None else min(count, most))


def _names(taps: list[Taps]) -> list[list[str]]:
    return [[f"{name!r} of {tap.argument}" for name in tap.names()] for tap in taps]


def _class_name(model: nn.Module) -> str:
    return type(unwrap(model)).__name__


def _kernel_text(kernel: Kernel) -> str:
    return "linear" if type(kernel).__name__ == "Linear" else repr(kernel)


def _on_cpu(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cpu()


def _one_of(argument: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"{argument} must be one of {names}, got {value!r}")
