"""O1: the host cost of one small call, beside torch.mul and an operator from Python.

Forward: one call on inputs that require no gradient. Forward and backward: one call on inputs that
do, then ``torch.autograd.grad`` of its result with respect to both. The arithmetic on (8, 16)
inputs is far below a microsecond, so the time of the call is its overhead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .. import dispatch
from ..ops import similarity
from .case import OURS, Case, Contender
from .gate import largest_difference, relative_distance
from .inputs import double

_LIBRARY_NAME = "sparsekern_bench::multiply"
_N, _D = 8, 16
_Pair: TypeAlias = tuple[Tensor, Tensor]
_Function: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def case(case_id: str, backward: bool) -> Case:
    """The case of one call, forward or forward and backward."""

    def inputs(dtype: torch.dtype, seed: int = 0) -> _Pair:
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(_N, _D, generator=generator).to(dtype) for _ in range(2))
        return x.requires_grad_(backward), y.requires_grad_(backward)

    def oracle(pair: _Pair) -> list[Tensor]:
        wide: _Pair = double(pair)
        with dispatch.backend("reference"):
            value = similarity.cka(*wide)
            return list(torch.autograd.grad(value, wide)) if backward else [value]

    direction = "forward and backward" if backward else "forward"
    with_gradient = "the same with inputs that require gradients, and torch.autograd.grad after it"
    alone = "small enough that the arithmetic is nothing: what remains is the call itself"
    return Case(
        id=case_id,
        suite="similarity",
        title=f"host cost of one small call: cka of ({_N}, {_D}), {direction}",
        reason=with_gradient if backward else alone,
        shapes=f"({_N}, {_D})",
        contenders=(
            _contender(OURS, OURS, lambda: similarity.cka, backward),
            _contender("torch_mul", "torch.mul", lambda: torch.mul, backward, same_work=False),
            _contender("custom_op", "torch custom_op", _custom_multiply, backward, same_work=False),
        ),
        inputs=inputs,
        oracle=oracle,
        error=relative_distance if backward else largest_difference,
        most_copies=1,
        summary=True,
    )


def _contender(
    name: str, label: str, function: Callable[[], _Function], backward: bool, **rest: Any
) -> Contender:
    def prepare(pair: _Pair) -> tuple[_Function, Tensor, Tensor, Tensor | None]:
        made = function()
        value = made(*pair)  # the first call of an operator sets it up
        return made, *pair, torch.ones_like(value).detach() if backward else None

    def forward(prepared: tuple[_Function, Tensor, Tensor, None]) -> Tensor:
        made, x, y, _ = prepared
        return made(x, y)

    def forward_backward(prepared: tuple[_Function, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        made, x, y, ones = prepared
        return torch.autograd.grad(made(x, y), (x, y), ones)

    if backward:
        return Contender(name, label, forward_backward, prepare, **rest)
    return Contender(name, label, forward, prepare, finish=lambda value: [value], **rest)


@functools.cache
def _custom_multiply() -> _Function:
    """``x * y`` as torch.library.custom_op makes an operator, with its gradient."""

    def multiply(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def keep(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        ctx.save_for_backward(*inputs)

    def backward(
        ctx: torch.autograd.function.NestedIOFunction, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return grad * y, grad * x

    operator = torch.library.custom_op(_LIBRARY_NAME, multiply, mutates_args=())
    operator.register_autograd(backward, setup_context=keep)
    return operator
