"""Calls of the Triton kernels of dense products with a mask: memory, launches, tensors out.

Imports Triton. Nothing here waits for the device or looks at a value on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...tiled import device
from ...tiled.configurations import Configuration, configuration
from ...tiled.grids import cdiv
from ...tiled.launching import OPERANDS, launch
from . import kernels, plan
from .choice import sizes_of
from .plan import Plan, Product


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """``x (W⊙M)ᵀ + b`` in the dtype of x.

    Args:
        x: (batch, columns), float32, bfloat16 or float16; no size is 0.
        weight: (rows, columns), of any of these dtypes.
        bias: (rows,) or None.
        mask: bool (rows, columns), contiguous.
    """
    return _multiply_masked(plan.FORWARD, x, weight, bias, mask)


def input_grad(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """``grad (W⊙M)`` in the dtype of grad, (batch, rows); the rest as for :func:`forward`."""
    return _multiply_masked(plan.INPUT, grad, weight, None, mask)


def weight_grad(grad: Tensor, x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``M⊙(gradᵀ x)``, or without a mask ``gradᵀ x``.

    Args:
        grad: (batch, rows).
        x: (batch, columns), of the same dtype.
        mask: bool (rows, columns), contiguous, or None.
        dtype: of the result, to which float32 sums are rounded once.
    """
    grad, x = _adjacent(grad), _adjacent(x)
    out = torch.empty((grad.shape[1], x.shape[1]), dtype=dtype, device=x.device)
    product = sizes_of(plan.WEIGHT, x, out, masked=mask is not None)
    how = _plan(product, x)
    dot, precision = OPERANDS[product.operands]
    one_launch = how.splits == 1
    parts = out if one_launch else _parts(how, out)
    kept = out if mask is None else mask.view(torch.uint8)
    with device.guard(x):
        launch(
            kernels.multiply_turned,
            (how.tiles, how.splits),
            how.config,
            grad,
            x,
            kept,
            parts,
            *x.shape[:1],
            *out.shape,
            grad.stride(0),
            x.stride(0),
            how.chunk,
            DOT=dot,
            PRECISION=precision,
            MASKED=product.masked and one_launch,
            PARTS=not one_launch,
            ROWS=how.lanes,
            COLUMNS=plan.FEATURES,
            BLOCK_K=how.step,
        )
        if not one_launch:
            _add(parts, None, kept if product.masked else None, out, how)
    return out


def step_(
    weight: Tensor,
    grad: Tensor,
    hidden: Tensor,
    removed: Tensor | None,
    velocity: Tensor,
    score: Tensor,
    momentum: float,
    rate: float,
) -> None:
    """See :func:`..scores.step_`; all tensors lie in memory in the same order."""
    config = configuration(device.device_class(weight.device), plan.STEP, "any", 0)
    with device.guard(weight):
        launch(
            kernels.move_scores,
            (cdiv(weight.numel(), config.block),),
            config,
            weight.detach(),
            grad,
            hidden,
            weight.detach() if removed is None else removed.view(torch.uint8),
            velocity,
            score,
            weight.numel(),
            momentum,
            rate,
            PRUNED=removed is not None,
            BLOCK=config.block,
        )


def add_configuration(x: Tensor) -> Configuration:
    """Configuration of the kernel that adds parts."""
    return configuration(device.device_class(x.device), plan.ADD, "any", 0)


def _multiply_masked(
    part: str, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor
) -> Tensor:
    x, weight = _adjacent(x), _adjacent(weight)
    product = sizes_of(part, x, weight, bias=bias is not None)
    how = _plan(product, x)
    dot, precision = OPERANDS[product.operands]
    out = torch.empty((product.batch, product.features), dtype=x.dtype, device=x.device)
    one_launch = how.splits == 1
    parts = out if one_launch else _parts(how, out)
    with device.guard(x):
        launch(
            kernels.multiply_masked,
            (how.tiles, how.splits),
            how.config,
            x,
            weight,
            mask.view(torch.uint8),
            out if bias is None else bias,
            parts,
            product.batch,
            product.features,
            product.depth,
            x.stride(0),
            weight.stride(0),
            product.columns,
            how.chunk,
            DOT=dot,
            PRECISION=precision,
            TURNED=part == plan.INPUT,
            BIAS=bias is not None and one_launch,
            PARTS=not one_launch,
            ROWS=how.lanes,
            FEATURES=plan.FEATURES,
            BLOCK_K=how.step,
        )
        if not one_launch:
            _add(parts, bias, None, out, how)
    return out


def _plan(product: Product, x: Tensor) -> Plan:
    return plan.plan(product, device.device_class(x.device), device.processors(x.device))


def _parts(how: Plan, out: Tensor) -> Tensor:
    return torch.empty((how.splits, *out.shape), dtype=torch.float32, device=out.device)


def _add(parts: Tensor, bias: Tensor | None, mask: Tensor | None, out: Tensor, how: Plan) -> None:
    config = add_configuration(out)
    launch(
        kernels.add_parts,
        (cdiv(out.numel(), config.block),),
        config,
        parts,
        out if bias is None else bias,
        out if mask is None else mask,
        out,
        out.numel(),
        out.shape[1],
        how.splits,
        BIAS=bias is not None,
        MASKED=mask is not None,
        BLOCK=config.block,
    )


def _adjacent(x: Tensor) -> Tensor:
    """A matrix with the elements of a row adjacent, as the kernels read it."""
    if x.is_neg():
        x = x.resolve_neg()
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()
