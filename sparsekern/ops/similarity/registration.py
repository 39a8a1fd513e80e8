"""The compiled similarity operators as torch.library sees them: schemas and fake kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..registry import register
from . import calls
from .layout import feature_space_is_faster, result_shape, state_bytes

_SPEC = "int kernel, float parameter0, float parameter1, int centring, bool center_features"
SCHEMAS = {
    "similarity_compare": f"(Tensor[] xs, int first, int quantity, {_SPEC}, bool keep)"
    " -> (Tensor, Tensor)",
    "similarity_compare_grad": "(Tensor grad, Tensor[] xs, Tensor state, bool[] needs, int first,"
    f" int quantity, {_SPEC}) -> Tensor[]",
    "similarity_sum": f"(Tensor[] xs, int[] sizes, bool mean, {_SPEC}, bool keep)"
    " -> (Tensor, Tensor)",
    "similarity_sum_grad": "(Tensor grad, Tensor[] xs, Tensor state, bool[] needs, int[] sizes,"
    f" bool mean, {_SPEC}) -> Tensor[]",
    "similarity_gram": f"(Tensor x, {_SPEC}) -> (Tensor, Tensor)",
    "similarity_gram_grad": f"(Tensor grad, Tensor x, Tensor state, {_SPEC}) -> Tensor",
}
_IMPLEMENTATIONS: dict[str, Any] = {
    "similarity_compare": calls.compare,
    "similarity_compare_grad": calls.compare_grad,
    "similarity_sum": calls.group_sum,
    "similarity_sum_grad": calls.group_sum_grad,
    "similarity_gram": calls.gram,
    "similarity_gram_grad": calls.gram_grad,
}


def _fake_state(xs: Sequence[Tensor], in_features: bool, keep: bool) -> Tensor:
    x = xs[0]
    dims = [layer.shape[1] for layer in xs]
    size = state_bytes(x.shape[0], dims, accumulation_dtype(x.dtype), in_features)
    return x.new_empty(size if keep else 0, dtype=torch.uint8)


def _compare_fake(
    xs: Sequence[Tensor], first: int, quantity: int, kernel: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    x = xs[0]
    out = x.new_empty(result_shape(first, len(xs)), dtype=accumulation_dtype(x.dtype))
    dims = [layer.shape[1] for layer in xs]
    in_features = feature_space_is_faster(x.shape[0], dims, first, kernel, x.dtype, rest[-1])
    return out, _fake_state(xs, in_features, rest[-1])


def _sum_fake(xs: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    out = xs[0].new_empty((), dtype=accumulation_dtype(xs[0].dtype))
    return out, _fake_state(xs, False, rest[-1])


def _gram_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    n = x.shape[0]
    return x.new_empty(n, n, dtype=accumulation_dtype(x.dtype)), _fake_state([x], False, True)


def grads_fake(
    grad: Tensor, xs: Sequence[Tensor], state: Tensor, needs: Sequence[bool], *_: Any
) -> list[Tensor]:
    """Empty gradients of all layers, of no size where none is needed."""
    return [x.new_empty(x.shape if needed else (0,)) for x, needed in zip(xs, needs, strict=True)]


def gram_grad_fake(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    """An empty gradient of one layer."""
    return x.new_empty(x.shape)


_FAKES: dict[str, Any] = {
    "similarity_compare": _compare_fake,
    "similarity_compare_grad": grads_fake,
    "similarity_sum": _sum_fake,
    "similarity_sum_grad": grads_fake,
    "similarity_gram": _gram_fake,
    "similarity_gram_grad": gram_grad_fake,
}

for _name, _schema in SCHEMAS.items():
    register(_name, _schema, _IMPLEMENTATIONS[_name], _FAKES[_name])
