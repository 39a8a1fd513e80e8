"""Dead-neuron rates over training, by hooks on every ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..nn.wrappers import clean_name, unwrap
from ..ops import checks
from ..ops.activity import dead_neuron_rate


class Rates(NamedTuple):
    """Shares of dead neurons as numbers; see :class:`sparsekern.DeadNeuronRate`."""

    static: float
    dynamic: float
    total: float


class DeadNeuronRecorder:
    """Measures :func:`sparsekern.dead_neuron_rate` at the output of every ReLU as it is used.

    One reading pass for each, without a copy and without waiting for a device: rates are added up
    where they are, and read by :meth:`rates` or :meth:`record`. A static rate is that of a batch:
    the share of neurons that are dead for all of its samples. Under ``torch.compile`` the hooks
    break the graph.

    Args:
        model: the network, wrapped or not.
        kinds: the modules to listen to.
        training: True: in training mode only; False: in evaluation only; None: in both.
        every: of the forwards that count, every so many are measured.

    Attributes:
        names: of the modules, in module order.
        history: what :meth:`record` has returned so far.

    Raises:
        ValueError: if there is no such module (``torch.relu`` and ``functional.relu`` cannot be
            listened to), or for arguments out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kinds: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6),
        training: bool | None = True,
        every: int = 1,
    ) -> None:
        checks.whole_numbers(every=every)
        if not isinstance(kinds, tuple) or not all(isinstance(kind, type) for kind in kinds):
            raise TypeError(f"kinds must be a tuple of module classes, got {kinds!r:.80}")
        if every < 1:
            raise ValueError(f"every must be positive, got {every}")
        core = unwrap(model)
        self._kinds, self.training, self.every = kinds, training, every
        self.history: list[dict[str, Any]] = []
        self._sums: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._forwards: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        self.names = []
        for name, module in core.named_modules():
            if isinstance(module, kinds):
                self.names.append(clean_name(name))
                self._handles.append(module.register_forward_hook(self._hook(self.names[-1])))
        if not self.names:
            wanted = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"model of type {type(core).__name__} has no module of type {wanted} to listen to"
            )

    def rates(self) -> dict[str, Rates]:
        """Name -> the mean over what was measured since the last :meth:`record`.

        Modules that were not used are left out.
        """
        return {
            name: Rates(*(self._sums[name] / self._calls[name]).tolist())
            for name in self.names
            if name in self._sums
        }

    def mean(self) -> Rates:
        """The mean over modules, each with the same weight.

        Raises:
            RuntimeError: if nothing was measured since the last :meth:`record`.
        """
        layers = list(self.rates().values())
        if not layers:
            raise RuntimeError("mean: there was no forward to measure since the last record()")
        return Rates(*(sum(rates) / len(layers) for rates in zip(*layers, strict=True)))

    def record(self, **labels: Any) -> dict[str, Any]:
        """Ends an interval, an epoch for example: keeps its rates in the history, begins anew.

        Args:
            labels: to be kept along with them, such as ``epoch=3``.

        Returns:
            The labels, and ``"static"``, ``"dynamic"``, ``"total"`` over all modules, and
            ``"layers"``: name -> the three of each. Numbers, strings, lists and dicts only.
        """
        mean = self.mean()
        layers = {name: list(rates) for name, rates in self.rates().items()}
        entry = {**labels, **mean._asdict(), "layers": layers}
        self.history.append(entry)
        self._sums, self._calls = {}, {}
        return entry

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """The history, and what the present interval has measured so far."""
        return {
            "history": list(self.history),
            "sums": {name: total.clone() for name, total in self._sums.items()},
            "calls": dict(self._calls),
            "forwards": dict(self._forwards),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self.history = list(state["history"])
        self._sums = {name: total.clone() for name, total in state["sums"].items()}
        self._calls, self._forwards = dict(state["calls"]), dict(state["forwards"])

    def __enter__(self) -> DeadNeuronRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def _hook(self, name: str) -> Any:
        def measure(module: nn.Module, args: Any, output: Tensor) -> None:
            if self.training is not None and module.training != self.training:
                return
            forwards = self._forwards.get(name, 0)
            self._forwards[name] = forwards + 1
            if forwards % self.every:
                return
            rates = torch.stack(dead_neuron_rate(output))
            self._sums[name] = self._sums[name] + rates if name in self._sums else rates
            self._calls[name] = self._calls.get(name, 0) + 1

        return torch.compiler.disable(measure)
