"""From what a layer puts out to features of shape (samples, features)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

TokenRule: TypeAlias = "str | Callable[[Tensor, Tensor | None], Tensor]"
SpatialRule: TypeAlias = "str | Callable[[Tensor], Tensor]"

TOKEN_RULES = ("flatten", "cls", "mean")
SPATIAL_RULES = ("flatten", "mean", "samples")
# Of an output with several tensors, the one that stands for the layer.
_PREFERRED = ("last_hidden_state", "hidden_states", "logits")
# Layers whose (B, C, L) outputs have channels second, unlike those of sequences, (B, T, C).
_CHANNELS_SECOND = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.BatchNorm1d,
    nn.InstanceNorm1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d,
)


class NoFeaturesError(TypeError):
    """A layer's output holds no floating-point features of shape (n, ...)."""


@dataclass(frozen=True)
class FeatureRule:
    """How outputs become features.

    Attributes:
        tokens: for sequences ``(B, T, C)``: ``"flatten"`` to ``(B, T·C)`` with padded tokens set
            to zero, ``"cls"`` for the first token, ``"mean"`` over the tokens that are not padding,
            or a function of the sequence and its mask (``(B, T)`` bool, or None).
        spatial: for maps ``(B, C, H, W)``, and ``(B, C, L)`` of 1-d convolutions: ``"flatten"``,
            ``"mean"`` over positions, ``"samples"`` for every position as a sample of its own,
            ``(B·H·W, C)``, or a function of the map.
        dtype: what features are converted to, or None for their own.
    """

    tokens: TokenRule = "flatten"
    spatial: SpatialRule = "flatten"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        _check("tokens", self.tokens, TOKEN_RULES)
        _check("spatial", self.spatial, SPATIAL_RULES)
        is_dtype = isinstance(self.dtype, torch.dtype)
        if self.dtype is not None and not (is_dtype and self.dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {self.dtype!r:.80}")

    def features(
        self, name: str, module: nn.Module, output: Any, samples: int, mask: Tensor | None
    ) -> Tensor:
        """``(n, d)`` features of one call of a layer; may share memory with the output.

        Args:
            name: of the layer, for errors.
            module: the layer.
            output: what it returned.
            samples: in the batch.
            mask: ``(B, T)``, true where a token is not padding, or None.

        Raises:
            NoFeaturesError: if there is no floating-point tensor in the output.
            ValueError: if the first dimension is not that of the samples.
        """
        x = first_tensor(output)
        if x is None or not x.is_floating_point() or x.layout is not torch.strided:
            raise NoFeaturesError(
                f"the output of {name!r} holds no floating-point tensor: got {describe(output)}"
            )
        x = x.detach()
        if x.dim() == 0 or x.shape[0] != samples:
            raise ValueError(
                f"the output of {name!r} has shape {tuple(x.shape)} and the batch {samples} "
                "samples: the first dimension must be that of the samples (batch_first=True)"
            )
        if x.dim() > 3 or (x.dim() == 3 and isinstance(module, _CHANNELS_SECOND)):
            x = self._spatial(x)
        elif x.dim() == 3:
            x = self._tokens(x, mask)
        if not isinstance(x, Tensor) or x.dim() == 0:
            raise TypeError(f"the rule for {name!r} must return (n, ...) features, got {x!r:.80}")
        x = flatten(x)
        return x if self.dtype is None else x.to(self.dtype)

    def _spatial(self, x: Tensor) -> Tensor:  # (B, C, ...) -> (n, ...)
        if callable(self.spatial):
            return self.spatial(x)
        if self.spatial == "mean":
            return x.flatten(2).mean(dim=2)
        if self.spatial == "samples":
            return x.flatten(2).transpose(1, 2).flatten(0, 1)
        return x

    def _tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:  # (B, T, C) -> (B, ...)
        if mask is not None and mask.shape != x.shape[:2]:
            mask = None  # another sequence than the model's input: pooled, or a decoder's
        if callable(self.tokens):
            return self.tokens(x, mask)
        if self.tokens == "cls":
            return x[:, 0]
        if mask is not None:
            # What stands at padded positions is arbitrary, even NaN; it must not count.
            x = x.masked_fill(~mask[:, :, None], 0)
        if self.tokens == "mean":
            if mask is None:
                return x.mean(dim=1)
            return x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return x


def flatten(x: Tensor) -> Tensor:  # (n, ...) -> (n, d)
    """One row per sample, without a copy where memory is dense in any order of dimensions.

    The order of features does not matter to a kernel, so a channels-last map stays as it lies.
    """
    if x.dim() == 1:
        return x[:, None]
    if x.dim() > 2 and not x.is_contiguous():
        order = sorted(range(1, x.dim()), key=x.stride, reverse=True)
        x = x.permute(0, *order)
    return x.flatten(1)


def first_tensor(output: Any) -> Tensor | None:
    """The output itself, or the first tensor in a tuple, list, mapping or dataclass.

    In mappings and dataclasses (Hugging Face's outputs are both) ``last_hidden_state`` goes first.
    """
    if isinstance(output, Tensor):
        return output
    for item in _items(output):
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def _items(output: Any) -> Iterator[Any]:
    fields: Mapping[Any, Any]
    if isinstance(output, Mapping):
        fields = output
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    else:
        yield from output if isinstance(output, tuple | list) else ()
        return
    for key in _PREFERRED:
        if key in fields:
            yield fields[key]
    yield from fields.values()


def describe(output: Any) -> str:
    """A few words about an output."""
    if isinstance(output, Tensor):
        return f"a {output.dtype} tensor of shape {tuple(output.shape)}"
    return type(output).__name__


def _check(argument: str, rule: object, known: tuple[str, ...]) -> None:
    if not callable(rule) and rule not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"{argument} must be one of {names} or a function, got {rule!r}")
