"""CKASparsity: the CKA-SR regulariser, fed by forward hooks on a model's residual blocks."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..nn.wrappers import unwrap
from ..ops import checks
from ..ops.precision import without_autocast
from ..ops.similarity import cka_sum
from .discovery import StageFunction, StageSpec, resolve_stages

_LEAST_SAMPLES = {"unbiased": 4, "biased": 2}


class CKASparsity:
    """Lowers the similarity between the layers of a network: CKA-SR (Ni et al. 2023).

    Interlayer similarity makes weights dense; adding ``beta · Σ_stages Σ_{i,j} CKA(X_i, X_j)`` to
    the task's loss (arXiv 2307.07389, appendix) lowers it, whatever makes the network
    sparse. ``X_i`` are the outputs of the residual blocks, flattened per sample; pairs are taken
    inside a stage, ordered, ``i = j`` included (a constant). With ``pairs="all"`` the loss is
    AugCKA-SR, ``beta`` times the mean of CKA over the pairs ``i < j`` of all blocks of all stages.

    A *step* is a training-mode forward of the model with gradients enabled, followed by a call of
    the regulariser. Steps 0, ``every``, ``2 · every``, ... return the loss of the forward just
    made; all others return zero and hold nothing. Call it once per forward, or, under gradient
    accumulation, once per optimiser step after the last forward: ``every`` counts the calls. The
    value is not scaled by ``every``, as in the authors' code. Features are those of the last
    forward only: a later one, in any mode, drops what an earlier one left.

    Args:
        model: the network, bare or in DataParallel, DDP or torch.compile. A compiled model that
            has already run does not see new hooks: attach first, in whichever order with
            ``torch.compile`` itself.
        stages: ``None`` to find the residual or transformer blocks; a list of lists of module
            names or globs (``[["layer1.*"], ["layer2.*"]]``); or a function from the unwrapped
            model to a list of lists of modules or names. See
            :func:`~sparsekern.regularizers.discovery.resolve_stages`.
        beta: weight of the loss. An attribute: set it at any time. The paper uses 1e-4 on CIFAR,
            1e-5 on ImageNet, and 0.1 with ``pairs="all"``.
        samples: how many samples from the front of the batch are compared (of the batch of each
            rank or, with DataParallel, of the first device); -1 for all. Their features are
            copied.
        every: steps from one collecting step to the next.
        estimator: ``"unbiased"`` (at least 4 samples) or ``"biased"`` (at least 2).
        pairs: ``"stage"`` or ``"all"``.

    Attributes:
        beta: the weight, free to change.
        last: the similarity of the last collecting step, without ``beta``: a detached scalar on
            the device, or None before the first. Reading it waits for nothing.
        stages: the names of the tapped modules, a list for each stage.
        step: how many steps there were.

    Raises:
        TypeError, ValueError: at construction, for arguments out of range, for stages that match
            nothing or where no pair of blocks exists, and where no blocks are found.

    Example:
        >>> regularizer = sparsekern.regularizers.CKASparsity(model, beta=1e-4)
        >>> loss = criterion(model(images), labels) + regularizer()
        >>> loss.backward()
    """

    beta: float
    last: Tensor | None
    stages: list[list[str]]
    step: int

    def __init__(
        self,
        model: nn.Module,
        stages: StageSpec | StageFunction | None = None,
        *,
        beta: float = 1e-4,
        samples: int = 8,
        every: int = 5,
        estimator: str = "unbiased",
        pairs: str = "stage",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(estimator, str) or estimator not in _LEAST_SAMPLES:
            raise ValueError(f'estimator must be "unbiased" or "biased", got {estimator!r}')
        if pairs not in ("stage", "all"):
            raise ValueError(f'pairs must be "stage" or "all", got {pairs!r}')
        least = _LEAST_SAMPLES[estimator]
        if checks.whole_number(samples, "samples") != -1 and samples < least:
            raise ValueError(
                f"samples must be -1 (the whole batch) or at least {least} with the {estimator} "
                f"estimator, got {samples}"
            )
        if checks.whole_number(every, "every") < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not math.isfinite(checks.number(beta, "beta")):
            raise ValueError(f"beta must be finite, got {beta}")
        self.beta = beta
        self.last = None
        self.step = 0
        self.samples = samples
        self.every = every
        self.estimator = estimator
        self.pairs = pairs
        self._core = unwrap(model)
        blocks = resolve_stages(model, stages)
        self.stages = [[name for name, _ in stage] for stage in blocks]
        self._names = [name for stage in self.stages for name in stage]
        self._check_pairs()
        self._warned: set[str] = set()
        self._collector = _Collector(self._core, len(self._names), samples)
        self._handles: list[RemovableHandle] = [
            self._core.register_forward_pre_hook(self._collector.begin),
            self._core.register_forward_hook(self._collector.end),
        ]
        flat = [module for stage in blocks for _, module in stage]
        for index, (name, module) in enumerate(zip(self._names, flat, strict=True)):
            tap = functools.partial(self._collector.collect, index, name)
            self._handles.append(module.register_forward_hook(tap))

    def __call__(self) -> Tensor:
        """The loss of the forward just made, to be added to the task's loss.

        Returns:
            A scalar on the model's device, float32, or float64 for float64 features. On a
            collecting step ``beta`` times the similarity, with gradient. Zero without gradient on
            any other step; where the batch has fewer samples than the estimator needs (it counts
            as a step); and without a training-mode forward since the last call (it does not).

        Raises:
            RuntimeError: after :meth:`remove`.
            ValueError: if blocks differ in their number of samples, or features are not finite
                (told on the CPU only).
        """
        if torch.compiler.is_compiling():  # the step counter would be compiled anew at each value
            disable: Callable[..., Callable[[], Tensor]] = torch.compiler.disable
            return disable(self._evaluate)()
        return self._evaluate()

    def _evaluate(self) -> Tensor:
        if not self._handles:
            raise RuntimeError("this CKASparsity was removed from its model: attach a new one")
        ran, features = self._collector.take()
        if not ran:
            if not self._collector.called:
                self._warn(
                    "CKASparsity was called, but has seen no forward of its model. Call it after "
                    "the forward; and if the model is compiled, attach it before the compiled "
                    "model first runs"
                )
            return self._zero()
        collecting = self._collector.armed
        self.step += 1
        self._collector.armed = self.step % self.every == 0
        if not collecting:
            return self._zero()
        groups = self._groups(features)
        if not groups:
            self._warn(
                f"CKASparsity: the forward called none of {', '.join(self._names)}. "
                "If the model is compiled, attach it before the compiled model first runs"
            )
            return self._zero()
        if self._collector.without_grad:
            self._warn(
                "CKASparsity: some blocks ran without gradients inside a forward with them, and "
                "are constants to the regulariser. With activation checkpointing, pass "
                "use_reentrant=False"
            )
        n = self._sample_count(groups)
        if n < _LEAST_SAMPLES[self.estimator]:
            return self._zero()
        similarity = self._similarity(groups, features)
        self.last = similarity.detach()
        return self.beta * similarity

    def remove(self) -> None:
        """Takes the hooks off the model and drops the features; the model is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._collector.stop()

    def state_dict(self) -> dict[str, int]:
        """The step counter, so that a resumed training collects at the same steps."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from the step of :meth:`state_dict`; features held are dropped.

        Raises:
            KeyError: if the state has no ``"step"``.
        """
        self.step = int(state["step"])
        self._collector.take()
        self._collector.armed = self.step % self.every == 0

    def __enter__(self) -> CKASparsity:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        sizes = " + ".join(str(len(stage)) for stage in self.stages)
        return (
            f"CKASparsity({sizes} blocks of {type(self._core).__name__}, beta={self.beta}, "
            f"samples={self.samples}, every={self.every}, estimator={self.estimator!r}, "
            f"pairs={self.pairs!r}, step={self.step})"
        )

    def _check_pairs(self) -> None:
        most = max(map(len, self.stages)) if self.pairs == "stage" else len(self._names)
        if most < 2:
            hint = (
                'compare across stages with pairs="all", or make them one stage: '
                f"stages=[{self._names!r}]"
                if len(self._names) > 1
                else "name at least two"
            )
            raise ValueError(
                f"no stage has two blocks to compare (stages: {self.stages!r}), so the loss would "
                f"be constant; {hint}"
            )

    def _groups(self, features: list[Tensor | None]) -> list[list[Tensor]]:
        """Features by stage; blocks that the forward left out (layer drop) are left out here."""
        remaining = iter(features)
        groups = [[next(remaining) for _ in stage] for stage in self.stages]
        present = [[feature for feature in group if feature is not None] for group in groups]
        return [group for group in present if group]

    def _similarity(self, groups: list[list[Tensor]], features: list[Tensor | None]) -> Tensor:
        reduction = "sum" if self.pairs == "stage" else "mean"
        with without_autocast(groups[0][0]):
            layers = _one_dtype_and_device(groups)
            try:
                return cka_sum(layers, estimator=self.estimator, reduction=reduction)
            except ValueError as error:
                for name, feature in zip(self._names, features, strict=True):
                    if feature is not None and not torch.isfinite(feature).all():
                        raise ValueError(
                            f"the output of block {name!r} holds values that are not finite (NaN "
                            "or infinity): the training has diverged, or its input is not finite"
                        ) from error
                raise

    def _sample_count(self, groups: list[list[Tensor]]) -> int:
        counts = {feature.shape[0] for group in groups for feature in group}
        if len(counts) > 1:
            raise ValueError(
                f"the blocks {', '.join(self._names)} give outputs of {sorted(counts)} samples: "
                "the first dimension must be the batch, and the same in all"
            )
        return counts.pop()

    def _zero(self) -> Tensor:
        parameter = next(self._core.parameters(), None)
        if parameter is None:
            return torch.zeros(())
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        return torch.zeros((), dtype=dtype, device=parameter.device)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=4)


class _Collector:
    """What the hooks see: whether this forward collects, and where its features go.

    The hooks are traced by torch.compile, so nothing here changes from step to step but flags:
    each combination compiles once, and the counting stays with the regulariser. A copy of the
    model, deep or pickled, gets a collector that is stopped.
    """

    def __init__(self, core: nn.Module | None, blocks: int, samples: int) -> None:
        self.core = core
        self.blocks = blocks
        self.samples = samples
        self.armed = core is not None  # the next training-mode forward collects
        self.active = False  # inside of such a forward
        self.called = False  # the model's own hook has run: it was not compiled before
        self.ran = False  # there was a training-mode forward since take()
        self.without_grad = False
        self.features: list[Tensor | None] = []

    def begin(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the model."""
        if self._is_other_replica(module):
            return
        self.called = True
        self.ran = module.training and torch.is_grad_enabled()
        self.active = self.armed and self.ran
        self.without_grad = False
        self.features = [None] * self.blocks if self.active else []

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: what runs later, as checkpoints do, is not seen."""
        if not self._is_other_replica(module):
            self.active = False

    def collect(self, index: int, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of a block; of several calls in one forward the last counts."""
        if not self.active or self._is_other_replica(module):
            return
        features = _first_tensor(output)
        if features is None or features.dim() == 0:
            raise TypeError(
                f"the output of {name!r} holds no features of shape (n, ...): got "
                f"{type(output).__name__}"
            )
        if not torch.is_grad_enabled():
            self.without_grad = True
        # A copy: a later in-place module would change a view, and break its backward.
        front = features if self.samples == -1 else features[: self.samples]
        self.features[index] = front.clone(memory_format=torch.contiguous_format)

    def take(self) -> tuple[bool, list[Tensor | None]]:
        """Whether a training-mode forward ran, and its features, which are no longer held."""
        ran, features = self.ran, self.features
        self.ran, self.features = False, []
        return ran, features

    def stop(self) -> None:
        """Collects no more, and drops what is held."""
        self.core = None
        self.armed = self.active = False
        self.take()

    def _is_other_replica(self, module: nn.Module) -> bool:
        """Whether this is DataParallel's copy of a module on another device than the first."""
        if not getattr(module, "_is_replica", False) or self.core is None:
            return False
        return torch.accelerator.current_device_index() != _device_index(self.core)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Collector, (None, self.blocks, self.samples))


def _device_index(module: nn.Module) -> int | None:
    return next(module.parameters()).device.index


def _first_tensor(output: Any) -> Tensor | None:
    """The output itself, or the first tensor in a tuple, list or mapping (a ModelOutput)."""
    if isinstance(output, Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output
    if isinstance(items, tuple | list) or isinstance(output, Mapping):
        for item in items:
            found = _first_tensor(item)
            if found is not None:
                return found
    return None


def _one_dtype_and_device(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    """Under autocast blocks differ in dtype: the widest wins. Model parallel: the first device."""
    first = groups[0][0]
    dtypes = (feature.dtype for group in groups for feature in group)
    dtype = functools.reduce(torch.promote_types, dtypes)
    return [[feature.to(first.device, dtype) for feature in group] for group in groups]
