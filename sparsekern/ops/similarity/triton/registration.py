"""The Triton operators as torch.library sees them: the schemas of the compiled core's.

Registered for the devices that Triton drives, and for the CPU, where its interpreter runs them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...precision import accumulation_dtype
from ...registry import register
from ..layout import result_shape
from ..registration import SCHEMAS, grads_fake, gram_grad_fake
from .state import state_bytes

_LINEAR = 0
_DEVICES = ("CUDA", "XPU", "CPU")
# Named here and imported with their first call, for they import Triton.
_FUNCTIONS = {
    "similarity_compare": "compare",
    "similarity_compare_grad": "compare_grad",
    "similarity_sum": "group_sum",
    "similarity_sum_grad": "group_sum_grad",
    "similarity_gram": "gram",
    "similarity_gram_grad": "gram_grad",
}


def _implementation(function: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls = importlib.import_module(".calls", __package__)
        return getattr(calls, function)(*arguments)

    return call


def _state_fake(xs: Sequence[Tensor], products: bool, keep: bool) -> Tensor:
    x = xs[0]
    size = state_bytes(x.shape[0], [layer.shape[1] for layer in xs], x.dtype, products)
    return x.new_empty(size if keep else 0, dtype=torch.uint8)


def _compare_fake(
    xs: Sequence[Tensor], first: int, quantity: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    x = xs[0]
    out = x.new_empty(result_shape(first, len(xs)), dtype=accumulation_dtype(x.dtype))
    return out, _state_fake(xs, True, rest[-1])


def _sum_fake(xs: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    out = xs[0].new_empty((), dtype=accumulation_dtype(xs[0].dtype))
    return out, _state_fake(xs, True, rest[-1])


def _gram_fake(x: Tensor, kernel: int, *_: Any) -> tuple[Tensor, Tensor]:
    n = x.shape[0]
    out = x.new_empty(n, n, dtype=accumulation_dtype(x.dtype))
    return out, _state_fake([x], kernel != _LINEAR, True)


_FAKES: dict[str, Any] = {
    "similarity_compare": _compare_fake,
    "similarity_compare_grad": grads_fake,
    "similarity_sum": _sum_fake,
    "similarity_sum_grad": grads_fake,
    "similarity_gram": _gram_fake,
    "similarity_gram_grad": gram_grad_fake,
}

for _name, _schema in SCHEMAS.items():
    register(
        _name.replace("similarity", "similarity_triton", 1),
        _schema,
        _implementation(_FUNCTIONS[_name]),
        _FAKES[_name],
        devices=_DEVICES,
    )
