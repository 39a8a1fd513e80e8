"""The protocol of all pruning methods, and what they share: masks, and how they are held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..nn.densities import check_sparsity, kept_in_all
from ..nn.layers import MaskedConv2d, MaskedLinear
from ..nn.weights import Weight, find_weights, listed
from ..nn.wrappers import unwrap
from ..ops import checks
from .distributed import broadcast, group_of
from .optimizers import StepWatch, check_optimizer, clear_state

_Self = TypeVar("_Self", bound="Pruner")


class Tandem(Protocol):
    """What a method that prunes along with another one is asked (see :class:`AP`)."""

    def share_of(self, kept: int) -> int:
        """How many weights the method leaves for it, where ``kept`` are to remain."""

    def choose(self, masks: list[Tensor], kept: int) -> list[Tensor]:
        """Prunes masks further, to ``kept`` weights or as far as it can."""

    def allowed(self) -> list[Tensor] | None:
        """What may be kept or grown back at all; None: everything."""

    def pruned(self) -> None:
        """Masks and weights are as they stay until the next pruning."""


class Pruner(ABC):
    """A method that makes a model sparse: masks over its weights, over training time.

    ::

        pruner = sk.pruning.RigL(0.95, end=3 * len(loader) * epochs // 4)
        pruner.attach(model, optimizer)         # masks as they are at the start
        for epoch in range(epochs):
            for batch in loader:
                ...                             # zero_grad, forward, backward, clipping
                optimizer.step()
                pruner.step()                   # after every optimizer step
            pruner.epoch()                      # at the end of every epoch

    The model's parameters stay the plain tensors they are, and everything that works with them
    goes on working. What is pruned is set to exactly 0 when a mask changes and after every step, so
    that neither momentum nor weight decay moves it. Where a layer is a masked one of
    :mod:`sparsekern.nn` (``sk.nn.sparsify(model, 0.0)`` before attaching makes them all so), it
    follows the mask, and training costs less as the network grows sparse.

    Which weights: :func:`sparsekern.nn.weights.find_weights` says it, and how tied ones are taken.

    - *Any optimizer and scheduler*: entries of its state that belong to a weight are cleared when
      that weight is pruned or grown back.
    - *AMP*: a step that GradScaler skips is none; call ``step()`` after ``scaler.step(optimizer)``.
    - *Gradient accumulation*: ``step()`` belongs to the optimizer's step, not to the backward.
    - *DDP*: give the wrapped model; each change of masks takes those of the first rank.
    - *Resuming*: make the model and the optimizer, load their states, and give the pruner its
      own **before** it is attached; or attach first and load all three after. (Attached to a
      loaded model without its state, a method would begin anew.)

    Args:
        sparsity: the share of weights that are 0 in the end, over all layers together, in
            ``[0, 1)``: exactly ``N - floor(sparsity * N)`` of N remain.
        exclude: names or modules to leave dense, with everything inside them.
        min_per_layer: so many weights of each layer (its best-scored) are kept in any case, for
            a network with an empty layer does not learn; 0: as the scores have it.

    Attributes:
        sparsity_target: what was asked for.
        steps: optimizer steps seen.
        epochs: epochs seen.
    """

    #: Whether the method goes on pruning after it is attached.
    prunes_later = False
    #: Whether the optimizer forgets what it remembers of weights that are pruned or grown back.
    forgets = True

    def __init__(
        self,
        sparsity: float,
        *,
        exclude: Iterable[str | nn.Module] = (),
        min_per_layer: int = 1,
    ) -> None:
        check_sparsity(sparsity)
        if checks.whole_number(min_per_layer, "min_per_layer") < 0:
            raise ValueError(f"min_per_layer must not be negative, got {min_per_layer}")
        self.sparsity_target = float(sparsity)
        self.min_per_layer = int(min_per_layer)
        self.steps = 0
        self.epochs = 0
        self.tandem: Tandem | None = None
        self._exclude = listed(exclude)
        self._weights: list[Weight] = []
        self._masks: list[Tensor] = []
        self._removed: list[Tensor] = []
        self._counts: list[int] = []
        self._waiting: dict[str, Any] | None = None
        self._started = False
        self._total = 0
        self._watch: StepWatch | None = None

    # --- the protocol ------------------------------------------------------------------------

    def attach(
        self: _Self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> _Self:
        """Finds the weights, and makes the masks that training starts with.

        Args:
            model: the network, wrapped (DDP, ``torch.compile``) or not.
            optimizer: its optimizer; None: no state to clear, and every ``step()`` is one.

        Returns:
            The pruner.

        Raises:
            RuntimeError: if it is attached already.
            ValueError: if the model has no weight to prune, or so few remain that
                ``min_per_layer`` cannot be kept.
            TypeError: for sharded parameters, or arguments of another kind.
        """
        if self._weights:
            raise RuntimeError("attach: this pruner is attached already; make another one")
        self._core, self._optimizer = unwrap(model), optimizer
        self._group = group_of(model)
        try:
            self._begin()
        except BaseException:  # such as a loss that fails: it may be attached again
            self.remove()
            self._weights = []
            raise
        return self

    def step(self) -> None:
        """To be called after every ``optimizer.step()``; holds the masks, and may change them."""
        self._check_attached("step")
        assert self._watch is not None
        if not self._watch.stepped():
            return
        self.steps += 1
        self._hold()
        self._after_step()

    def epoch(self) -> None:
        """To be called at the end of every epoch; may change the masks."""
        self._check_attached("epoch")
        self.epochs += 1
        self._after_epoch()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool mask of its shape, True where kept; not to be written to."""
        names = [weight.name for weight in self._weights]
        return dict(zip(names, self._masks, strict=True))

    @property
    def sparsity(self) -> float:
        """The share of weights that is pruned now."""
        self._check_attached("sparsity")
        return 1 - self.kept / self._total

    @property
    def total(self) -> int:
        """How many weights are under a mask."""
        self._check_attached("total")
        return self._total

    @property
    def kept(self) -> int:
        """How many of them are kept now."""
        return sum(self._counts)

    @property
    def kept_per_layer(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> how many weights are kept, of how many."""
        return {
            weight.name: (count, weight.parameter.numel())
            for weight, count in zip(self._weights, self._counts, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs to go on bit for bit, beside the model's and optimizer's states.

        Tensors, numbers, strings, lists and dicts: ``torch.load`` reads it with ``weights_only``.
        """
        self._check_attached("state_dict")
        return {
            "method": type(self).__name__,
            "sparsity": self.sparsity_target,
            "steps": self.steps,
            "epochs": self.epochs,
            "masks": self.masks,
            "own": self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken: at once, or as soon as it is attached.

        Raises:
            ValueError: for the state of another method, sparsity or model.
        """
        mine = (type(self).__name__, self.sparsity_target)
        theirs = (state["method"], state["sparsity"])
        if mine != theirs:
            raise ValueError(
                f"the state is that of {theirs[0]} at sparsity {theirs[1]}: expected {mine[0]} at "
                f"{mine[1]}"
            )
        if self._weights:
            self._restore(state)
        else:
            self._waiting = dict(state)

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Goes on with another optimizer, such as a fresh one for a new phase of training."""
        self._check_attached("set_optimizer")
        self.remove()
        self._optimizer = optimizer
        self._watch_optimizer()

    def remove(self) -> None:
        """Takes its hook off the optimizer. Weights and masks stay as they are."""
        if self._watch is not None:
            self._watch.remove()

    def mask_gradients(self) -> None:
        """Sets the gradients of pruned weights to 0, for what looks at gradients as a whole.

        Clipping by norm, for example, which would count them. To be called after backward (with
        AMP: after ``unscale_``). Methods that grow weights by their gradient then see none.
        """
        for weight, removed in zip(self._weights, self._removed, strict=True):
            if weight.parameter.grad is not None:
                weight.parameter.grad.masked_fill_(removed, 0)

    # --- what methods fill in ----------------------------------------------------------------

    @abstractmethod
    def _choose(self, kept: int, allowed: list[Tensor]) -> list[Tensor]:
        """Masks that keep ``kept`` of the allowed weights, by the method's own metric."""

    def _start(self) -> None:  # noqa: B027 - may be left out
        """Makes the first masks; without it nothing is pruned at the start."""

    def _after_step(self) -> None:  # noqa: B027 - may be left out
        """Looks after an optimizer step, with the masks held already, whether to change them."""

    def _after_epoch(self) -> None:  # noqa: B027 - may be left out
        """Looks at the end of an epoch whether to change the masks."""

    def _after_pruning(self) -> None:  # noqa: B027 - may be left out
        """Does what follows a pruning, such as rewinding."""

    def _own_state(self) -> dict[str, Any]:
        """What the method itself must remember."""
        return {}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - may be left out
        """Takes back what ``_own_state`` gave."""

    def _find(self) -> list[Weight]:
        """The weights that it prunes."""
        return find_weights(self._core, self._exclude)

    # --- what methods use --------------------------------------------------------------------

    @property
    def _final(self) -> int:
        """How many weights are kept in the end."""
        return kept_in_all(self._total, self.sparsity_target)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [weight.parameter for weight in self._weights]

    def _prune_to(self, kept: int) -> None:
        """Prunes by the method's metric, and by the tandem's share, to so many weights."""
        spare = 0 if self.tandem is None else self.tandem.share_of(kept)
        masks = self._choose(kept + spare, self._allowed())
        if self.tandem is not None and self._started:
            masks = self.tandem.choose(masks, kept)
            if sum(_counts(masks)) > kept:  # there was nothing more that it prunes
                masks = self._choose(kept, masks)
        self._set(masks)
        self._after_pruning()
        if self.tandem is not None and self._started:
            self.tandem.pruned()

    def _allowed(self) -> list[Tensor]:
        """What may be kept: by default what is, so that nothing pruned comes back."""
        return self._masks

    def _growable(self) -> list[Tensor]:
        """What is pruned and may be grown back."""
        allowed = None if self.tandem is None else self.tandem.allowed()
        if allowed is None:
            return self._removed
        return [removed & a for removed, a in zip(self._removed, allowed, strict=True)]

    @torch.no_grad()
    def _set(self, masks: list[Tensor]) -> None:
        """Takes other masks; what the optimizer remembers of changed entries is forgotten."""
        devices = [p.device for p in self._parameters]
        masks = [mask.to(d).contiguous() for mask, d in zip(masks, devices, strict=True)]
        broadcast(masks, self._group)
        if self.forgets:
            for parameter, old, new in zip(self._parameters, self._masks, masks, strict=True):
                clear_state(self._optimizer, parameter, old ^ new)
        self._put(masks)

    @torch.no_grad()
    def _hold(self) -> None:
        """Sets pruned weights to exactly 0."""
        for parameter, removed in zip(self._parameters, self._removed, strict=True):
            parameter.masked_fill_(removed, 0)

    def _begin(self) -> None:
        self._weights = self._find()
        self._total = sum(weight.parameter.numel() for weight in self._weights)
        self._check_weights()
        self._put([torch.ones_like(w.parameter, dtype=torch.bool) for w in self._weights])
        self._watch_optimizer()
        if self._waiting is not None:
            self._restore(self._waiting)
            self._waiting = None
        else:
            self._start()
            if self.tandem is not None:
                self.tandem.pruned()
        self._started = True

    def _watch_optimizer(self) -> None:
        """Puts hooks on the optimizer."""
        check_optimizer(self._optimizer, self._parameters)
        self._watch = StepWatch(self._optimizer)

    # --- inside ------------------------------------------------------------------------------

    def _put(self, masks: list[Tensor]) -> None:
        self._masks = masks
        self._removed = [~mask for mask in masks]
        self._counts = _counts(masks)
        self._hold()
        for weight, mask in zip(self._weights, masks, strict=True):
            for owner in weight.owners:
                if isinstance(owner, MaskedLinear | MaskedConv2d):
                    owner.set_mask(mask)

    def _restore(self, state: Mapping[str, Any]) -> None:
        masks: Mapping[str, Tensor] = state["masks"]
        names = [weight.name for weight in self._weights]
        if list(masks) != names:
            raise ValueError(
                f"the state has masks of {', '.join(masks) or 'nothing'}: expected those of "
                f"{', '.join(names)}"
            )
        for weight in self._weights:
            if masks[weight.name].shape != weight.parameter.shape:
                raise ValueError(
                    f"the state's mask of {weight.name} has shape "
                    f"{tuple(masks[weight.name].shape)}: expected {tuple(weight.parameter.shape)}"
                )
        self.steps, self.epochs = int(state["steps"]), int(state["epochs"])
        self._load_own_state(state["own"])
        self._put([masks[w.name].to(w.parameter.device, copy=True) for w in self._weights])

    def _check_attached(self, what: str) -> None:
        if not self._weights:
            raise RuntimeError(f"{what}: the pruner is not attached yet; call attach() first")

    def _check_weights(self) -> None:
        if not self._weights:
            raise ValueError(
                f"model of type {type(self._core).__name__} has no linear, convolutional or "
                "attention weight to prune"
            )
        for name, parameter, _ in self._weights:
            if hasattr(parameter, "to_local"):
                raise TypeError(f"{name} is sharded (DTensor): expected a whole tensor")
            if parameter.is_meta:
                raise ValueError(f"{name} is on the meta device: expected one with values")
        least = sum(min(self.min_per_layer, p.numel()) for p in self._parameters)
        if self._final < least:
            raise ValueError(
                f"sparsity {self.sparsity_target} leaves {self._final} of {self._total} weights, "
                f"and {len(self._weights)} layers are to keep {self.min_per_layer} each: choose a "
                "lower one, or min_per_layer=0"
            )


def _counts(masks: list[Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks]
