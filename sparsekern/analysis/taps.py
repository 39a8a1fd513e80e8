"""Forward hooks that hand out a layer's features while they are what the layer computed."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..nn.wrappers import unwrap
from .features import FeatureRule, NoFeaturesError
from .layers import Selection

Key = tuple[str, int]  # a layer's name, and which call of it in one forward


class Taps:
    """Listens to layers of one model; a context manager that leaves no hook behind.

    A later in-place module (``ReLU(inplace=True)``) writes into the tensor that an earlier layer
    returned, so features are reduced inside the hook, before the next module runs.

    Args:
        model: the network.
        layers: what to listen to.
        rule: how outputs become features.
        reduce: called with a layer's key and its ``(n, d)`` features; what it returns must not
            share memory with them.
        argument: ``"model1"`` or ``"model2"``, for errors.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Selection,
        rule: FeatureRule,
        reduce: Callable[[Key, Tensor], Any],
        argument: str,
    ) -> None:
        self.model = model
        self.argument = argument
        self._layers, self._rule, self._reduce = layers, rule, reduce
        self._handles: list[RemovableHandle] = []
        self._samples = 0
        self._mask: Tensor | None = None
        self._seen: dict[Key, Any] = {}
        self._calls: dict[str, int] = {}
        self._unusable: set[str] = set()
        self._shapes: dict[Key, tuple[float, int]] = {}
        self._keys: list[Key] | None = None
        self._fused_layers: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def __enter__(self) -> Taps:
        # Compiled modules are hooked from outside: what they wrap counts as well.
        hooked = {inner for m in self._layers.modules.values() for inner in (m, unwrap(m))}
        if _are_passed_over(self.model, hooked):
            self._fused_layers = _no_fused_layers
        for name, module in self._layers.modules.items():
            self._handles.append(module.register_forward_hook(functools.partial(self._hear, name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    @property
    def keys(self) -> list[Key]:
        """The layers that ran, in the order of definition; known after the first forward."""
        return self._keys or []

    @property
    def shapes(self) -> list[tuple[float, int]]:
        """Of each key the rows of features for one sample, and how many features there are."""
        return [self._shapes[key] for key in self.keys]

    def names(self) -> list[str]:
        """One label for each key: the layer's name, ``name#2`` for a second call of it."""
        return labels(self.keys)

    def run(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], samples: int, mask: Tensor | None
    ) -> list[Any]:
        """One forward without gradients.

        Returns:
            What ``reduce`` returned, for each key.

        Raises:
            ValueError: if a layer that was named did not run, or the layers that run differ from
                those of the first forward.
        """
        self._samples, self._mask = samples, mask
        self._seen, self._calls = {}, {}
        with torch.no_grad(), self._fused_layers():
            self.model(*args, **kwargs)
        seen, self._seen = self._seen, {}
        order = {name: index for index, name in enumerate(self._layers.modules)}
        keys = sorted(seen, key=lambda key: (order[key[0]], key[1]))
        if self._keys is None:
            self._keys = self._first(keys)
        elif keys != self._keys:
            changed = sorted({name for name, _ in set(keys) ^ set(self._keys)})
            raise ValueError(
                f"{self.argument} called {', '.join(map(repr, changed))} another number of times "
                "in this forward than in the first: leave these layers out"
            )
        return [seen[key] for key in keys]

    def _first(self, keys: list[Key]) -> list[Key]:
        called = {name for name, _ in keys}
        silent = [
            name
            for name in self._layers.modules
            if name not in called and name not in self._unusable
        ]
        wanted = [name for name in silent if name in self._layers.named]
        if wanted:
            raise ValueError(
                f"the forward of {self.argument} never called {', '.join(map(repr, wanted))}: "
                "leave such layers out, or compare what contains them"
            )
        if not keys:
            raise ValueError(
                f"the forward of {self.argument} called none of the layers chosen. A compiled "
                "model that has already run does not see new hooks: pass the model before "
                "torch.compile"
            )
        if silent:
            self._warn(f"never called, and left out: {', '.join(silent)}")
        if self._unusable:
            self._warn(f"no features, and left out: {', '.join(sorted(self._unusable))}")
        repeated = [name for name in called if (name, 1) in keys]
        if repeated:
            self._warn(
                f"called more than once in a forward: {', '.join(sorted(repeated))}; each call is "
                'a row of its own, marked "#1", "#2", ...'
            )
        return keys

    def _warn(self, message: str) -> None:
        warnings.warn(f"layers of {self.argument} {message}", stacklevel=5)

    def _hear(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        try:
            features = self._rule.features(name, module, output, self._samples, self._mask)
        except NoFeaturesError:
            if name in self._layers.named:
                raise
            self._unusable.add(name)
            return
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        self._shapes.setdefault((name, call), (len(features) / self._samples, features[0].numel()))
        try:
            self._seen[name, call] = self._reduce((name, call), features)
        except ValueError as error:
            if not torch.isfinite(features).all():
                problem = "holds values that are not finite (NaN or infinity)"
                raise ValueError(f"the output of {name!r} of {self.argument} {problem}") from error
            raise ValueError(f"the output of {name!r} of {self.argument}: {error}") from error


@contextlib.contextmanager
def _no_fused_layers() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _are_passed_over(model: nn.Module, layers: Collection[nn.Module]) -> bool:
    """Whether torch's fused inference would leave any of these layers out.

    The kernel of a whole encoder layer calls no module inside, and an encoder that packs padded
    sequences hands on nested tensors, which have no rectangular shape. The attention kernel leaves
    nothing out: attention never calls its projections as modules.
    """
    for outer in model.modules():
        packs = isinstance(outer, nn.TransformerEncoder) and getattr(
            outer, "use_nested_tensor", False
        )
        if packs or isinstance(outer, nn.TransformerEncoderLayer):
            inside = (module for module in outer.modules() if module is not outer)
            if any(module in layers for module in inside):
                return True
    return False


def labels(keys: list[Key]) -> list[str]:
    """One label for each key; calls are numbered where a layer has several."""
    repeated = {name for name, call in keys if call > 0}
    return [f"{name}#{call + 1}" if name in repeated else name for name, call in keys]
