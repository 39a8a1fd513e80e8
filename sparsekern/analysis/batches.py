"""Batches for one or two models: what a model is called with, in step, and never too small."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from ..nn.wrappers import unwrap

_LABELS = ("labels", "label", "target", "targets", "y")
_INPUTS = ("input_ids", "pixel_values", "inputs", "input", "x", "image", "images", "data")
_INDICES = ("index", "indices", "idx", "id", "ids", "sample_index")
_MASK = "attention_mask"
InputRule = Callable[[Any], Any]


@dataclass(frozen=True)
class Call:
    """One call of a model: its arguments, the number of samples, and the padding mask if any."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int
    mask: Tensor | None


def call_of(model: nn.Module, batch: Any, rule: InputRule | None, device: torch.device) -> Call:
    """How a model is called on a batch.

    Of ``(x, y)`` the first element is the input; of a mapping those keys that the model's forward
    takes, labels aside, else the first key with a usual name of an input, by position.

    Args:
        model: the network.
        batch: what the loader gave.
        rule: a function from the batch to a tensor, a tuple of positional arguments or a dict of
            keyword arguments, instead of the above.
        device: where tensors are moved.

    Raises:
        TypeError, ValueError: if no input is found in the batch.
    """
    chosen = batch if rule is None else rule(batch)
    if rule is None and isinstance(chosen, tuple | list):
        if not chosen:
            raise ValueError("a batch is empty: expected (inputs, ...) or a tensor")
        chosen = chosen[0]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(chosen, Mapping):
        if rule is None:
            args, kwargs = _from_mapping(model, chosen)
        else:
            kwargs = dict(chosen)
    elif isinstance(chosen, tuple | list):
        args = tuple(chosen)
    else:
        args = (chosen,)
    first = next(_tensors([*args, *kwargs.values()]), None)
    if first is None or first.dim() == 0:
        raise TypeError(
            f"no input tensor of shape (n, ...) in a batch of type {type(batch).__name__}: pass "
            "inputs=, a function from the batch to what the model is called with"
        )
    mask = chosen.get(_MASK) if isinstance(chosen, Mapping) else None
    if isinstance(mask, Tensor):
        mask = mask.to(device).bool() if mask.dim() == 2 else None
    return Call(
        tuple(_moved(value, device) for value in args),
        {key: _moved(value, device) for key, value in kwargs.items()},
        first.shape[0],
        mask,
    )


def _from_mapping(
    model: nn.Module, batch: Mapping[Any, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    parameters = inspect.signature(unwrap(model).forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {
        key: value
        for key, value in batch.items()
        if key not in _LABELS and key not in _INDICES and (key in parameters or open_ended)
    }
    if any(isinstance(value, Tensor) and key != _MASK for key, value in taken.items()):
        return (), taken
    for key in _INPUTS:
        if key in batch:
            return (batch[key],), {k: v for k, v in taken.items() if k == _MASK}
    raise ValueError(
        f"a batch has the keys {', '.join(map(repr, batch))}, and the model takes "
        f"{', '.join(parameters)}: pass inputs=, a function from the batch to its arguments"
    )


def paired(
    loader1: Iterable[Any],
    loader2: Iterable[Any] | None,
    *,
    least: int,
    max_samples: int | None,
    checked: bool = True,
) -> Iterator[tuple[Any, Any]]:
    """Batches of both models in step; with one loader both get the same batch.

    Batches of fewer samples than ``least`` are merged with those after them, what is left of them
    at the end with the batch before it; where that cannot be done (lengths of sequences differ)
    the smaller one is left out with a warning.

    Args:
        loader1: an iterable of batches, or one batch as a tensor.
        loader2: the same for the second model, or None.
        least: samples that a batch must have.
        max_samples: where to stop, or None.
        checked: whether two loaders are checked for their order.

    Raises:
        ValueError: if two loaders differ in length, batch sizes or order, or could differ in
            order unnoticed.
    """
    if loader2 is loader1:
        loader2 = None
    if loader2 is None:
        pairs: Iterator[tuple[Any, Any]] = ((batch, batch) for batch in _batches(loader1))
    else:
        pairs = _in_step(loader1, loader2, checked)
    ready: tuple[Any, Any] | None = None  # held back: a short last batch may have to join it
    short: tuple[Any, Any] | None = None
    for pair in _limited(pairs, max_samples):
        joined = pair if short is None else _as_one(short, pair, least)
        short = None
        if _size(joined) < least:
            short = joined
            continue
        if ready is not None:
            yield ready
        ready = joined
    if ready is None and short is not None:
        raise ValueError(
            f"the data has {_size(short)} sample(s) in all; at least {least} are needed"
        )
    if ready is not None:
        yield ready if short is None else _as_one(ready, short, least)


def _as_one(first: tuple[Any, Any], second: tuple[Any, Any], least: int) -> tuple[Any, Any]:
    """Both as one batch, or the larger of two that cannot be one."""
    merged = _merged(first, second)
    if merged is not None:
        return merged
    smaller, larger = sorted((first, second), key=_size)
    warnings.warn(
        f"a batch of {_size(smaller)} sample(s) was left out: it cannot be merged with its "
        f"neighbour, and the estimator needs {least}",
        stacklevel=4,
    )
    return larger


def _batches(loader: Iterable[Any]) -> Iterator[Any]:
    if isinstance(loader, Tensor):
        yield loader
    elif isinstance(loader, Mapping | str | nn.Module) or not isinstance(loader, Iterable):
        raise TypeError(
            f"a loader must be an iterable of batches or one tensor, got {type(loader).__name__}"
        )
    else:
        yield from loader


def _in_step(
    loader1: Iterable[Any], loader2: Iterable[Any], checked: bool
) -> Iterator[tuple[Any, Any]]:
    lengths = _length(loader1), _length(loader2)
    if None not in lengths and lengths[0] != lengths[1]:
        raise ValueError(
            f"loader1 has {lengths[0]} batches and loader2 {lengths[1]}: both models must see the "
            "same samples in the same order"
        )
    shuffled = checked and (_is_shuffled(loader1) or _is_shuffled(loader2))
    first, second = _batches(loader1), _batches(loader2)
    for number in range(1, 1 << 62):
        pair = next(first, _END), next(second, _END)
        ended = [batch is _END for batch in pair]
        if all(ended):
            return
        if any(ended):
            raise ValueError(
                f"loader{1 + ended.index(True)} ended after {number - 1} batches and the other "
                "did not: both models must see the same samples in the same order"
            )
        sizes = _size_of(pair[0]), _size_of(pair[1])
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"batch {number} of loader1 has {sizes[0]} samples and that of loader2 {sizes[1]}"
            )
        if checked:
            verified = _same_order(pair[0], pair[1], number)
            if shuffled and not verified:
                raise ValueError(
                    "a loader is shuffled, and its batches have neither indices nor labels to "
                    "tell the order by: pass one loader for both models, or shuffle=False"
                )
        yield pair


_END = object()


def _is_shuffled(loader: Iterable[Any]) -> bool:
    return isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler)


def _length(loader: Iterable[Any]) -> int | None:
    if isinstance(loader, Tensor):
        return 1
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # an iterable without a length, or a loader of an iterable data set
        return None


def _same_order(batch1: Any, batch2: Any, number: int) -> bool:
    """Whether the batches hold the same samples as far as they tell; False if they do not tell."""
    marks = _marks(batch1), _marks(batch2)
    told = False
    for what in ("indices", "labels"):
        one, two = marks[0].get(what), marks[1].get(what)
        if one is None or two is None or one.shape != two.shape:
            continue
        if not torch.equal(one.cpu(), two.cpu()):
            raise ValueError(
                f"batch {number} of loader1 and of loader2 differ in their {what}: both models "
                "must see the same samples in the same order (shuffle=False, or one loader)"
            )
        told = True
    return told


def _marks(batch: Any) -> dict[str, Tensor]:
    """What tells samples apart: indices under a usual name, and integer labels."""
    found: dict[str, Tensor] = {}
    if isinstance(batch, Mapping):
        for what, keys in (("indices", _INDICES), ("labels", _LABELS)):
            values = (batch[key] for key in keys if key in batch)
            value = next((value for value in values if isinstance(value, Tensor)), None)
            if value is not None:
                found[what] = value
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        value = batch[1]
        if isinstance(value, Tensor) and not value.is_floating_point():
            found["labels"] = value
    return found


def _limited(
    pairs: Iterator[tuple[Any, Any]], max_samples: int | None
) -> Iterator[tuple[Any, Any]]:
    left = max_samples
    for pair in pairs:
        size = _size(pair)
        if left is not None and size >= left:
            yield tuple(_front(batch, size, left) for batch in pair)
            return
        yield pair
        if left is not None:
            left -= size


def _size(pair: tuple[Any, Any]) -> int:
    return _size_of(pair[0])


def _size_of(batch: Any) -> int:
    first = next((x for x in _tensors([batch]) if x.dim() > 0), None)
    if first is None:
        raise TypeError(f"a batch of type {type(batch).__name__} holds no tensor of shape (n, ...)")
    return first.shape[0]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _front(value: Any, size: int, left: int) -> Any:
    """The first samples of every tensor that has one row per sample."""
    if isinstance(value, Tensor):
        return value[:left] if value.dim() > 0 and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _front(item, size, left) for key, item in value.items()}
    if isinstance(value, tuple | list):
        if len(value) == size and not any(True for _ in _tensors(value)):
            return value[:left]
        return _like(value, [_front(item, size, left) for item in value])
    return value


def _merged(first: tuple[Any, Any], second: tuple[Any, Any]) -> tuple[Any, Any] | None:
    try:
        one = _joined(first[0], second[0])
        same = first[0] is first[1] and second[0] is second[1]
        return one, (one if same else _joined(first[1], second[1]))
    except (TypeError, RuntimeError, KeyError, ValueError):
        return None


def _joined(one: Any, two: Any) -> Any:
    if isinstance(one, Tensor):
        return torch.cat([one, two]) if one.dim() > 0 else one
    if isinstance(one, Mapping):
        return {key: _joined(value, two[key]) for key, value in one.items()}
    if isinstance(one, tuple | list):
        if not any(True for _ in _tensors(one)):
            return _like(one, [*one, *two])
        return _like(one, [_joined(a, b) for a, b in zip(one, two, strict=True)])
    return one


def _moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor on the device; pinned memory is copied without waiting."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return _like(value, [_moved(item, device) for item in value])
    return value


def _like(value: Any, items: list[Any]) -> Any:
    """A list, tuple or named tuple of the kind of ``value``."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
