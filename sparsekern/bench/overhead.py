"""O1: the host cost of one small call, beside torch.mul and an operator from Python.

Forward: one call under no_grad. Forward and backward: one call on inputs that require gradients,
then ``torch.autograd.grad`` of its result with respect to both. The arithmetic on (8, 16) inputs
is far below a microsecond, so the time of the call is its overhead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .. import dispatch
from ..ops import similarity
from .cases import OverheadCase
from .contenders import LABELS, OURS
from .results import CaseResult, Row
from .timing import FULL, QUICK, interleave, once

_LIBRARY_NAME = "sparsekern_bench::multiply"


@functools.cache
def _custom_multiply() -> Callable[[Tensor, Tensor], Tensor]:
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


def measure(case: OverheadCase, names: list[str], backend: str, quick: bool) -> CaseResult:
    """Times the operator and the baselines, interleaved."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(case.n, case.d, generator=generator).requires_grad_(case.backward)
        for _ in range(2)
    )
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        OURS: similarity.cka,
        "torch_mul": torch.mul,
        "custom_op": _custom_multiply(),
    }
    chosen = [OURS, *names]
    with dispatch.backend(backend), torch.set_grad_enabled(case.backward):
        calls = [_call(functions[name], x, y, case.backward) for name in chosen]
        estimates = []
        for call in calls:
            once(call)
            estimates.append(min(once(call) for _ in range(20)))
        timings = interleave(calls, estimates, QUICK if quick else FULL)
    rows = [
        Row(
            name,
            LABELS[name],
            seconds=timing.median,
            low=timing.low,
            high=timing.high,
            samples=timing.samples,
        )
        for name, timing in zip(chosen, timings, strict=True)
    ]
    return CaseResult(case.id, case.suite, case.title, case.reason, rows)


def _call(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, backward: bool
) -> Callable[[], object]:
    if not backward:
        return lambda: function(x, y)
    ones = torch.ones_like(function(x, y))
    return lambda: torch.autograd.grad(function(x, y), (x, y), ones)
