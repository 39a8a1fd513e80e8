"""Masked linear layers and sparse products: the public functions, their checks and shapes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..registry import back_end
from . import compressed, cpu, cuda, reference
from .pattern import SparsityPattern
from .triton import linear as triton

_WEIGHT_GRADS = ("masked", "dense")


def masked_linear(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | SparsityPattern,
    bias: Tensor | None = None,
    *,
    weight_grad: str = "masked",
) -> Tensor:
    """``x (W⊙M)ᵀ + b``, at a cost that falls with the number of kept weights.

    The weight stays dense and is what is trained: its kept entries are read at each call, so any
    optimizer works as it is. What lies under the mask, NaN and infinities included, has no
    influence. Where a dense product is faster, it is taken; of an x that is not finite that product
    makes NaN at zeros of W⊙M too, which sparse ones skip.

    Under autocast x is cast as ``torch.nn.functional.linear`` casts it, and the result has that
    dtype; the weight is read as it is stored.

    Args:
        x: ``(..., columns)``; float32, float64, bfloat16 or float16 (16-bit ones with float32
            accumulation).
        weight: ``(rows, columns)``, of the dtype and device of x.
        mask: bool ``(rows, columns)``, or a :class:`SparsityPattern`, which is built once where a
            mask is prepared at every call.
        bias: ``(rows,)`` or None.
        weight_grad: ``"masked"``: the gradient of W⊙M with respect to W, 0 where the mask is
            False. ``"dense"``: straight through, the gradient with respect to W⊙M itself, which
            methods that grow weights back ask for (OptG, RigL).

    Returns:
        ``(..., rows)``. Differentiable in x, weight and bias.

    Raises:
        TypeError: for dtypes other than these or that differ, or a mask that is not bool.
        ValueError: for shapes or devices that do not fit.
    """
    check_weight_grad(weight_grad)
    checks.floating_tensor(x, "x")
    checks.floating_tensor(weight, "weight")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (rows, columns), got {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must have shape (..., {weight.shape[1]}) for a weight of shape "
            f"{tuple(weight.shape)}, got {tuple(x.shape)}"
        )
    check_weight(weight, mask, bias)
    x = autocast_input(x)
    check_types(x, weight, bias)
    if isinstance(mask, SparsityPattern) and mask.remembered is not None:
        form = compressed.found(x, weight, mask)
        if form is not None:
            return form.linear(x, None if bias is None else bias.to(x.dtype))
    implementation = implementation_for(x, mask, cuda, triton)
    if implementation is reference:
        return reference.masked_linear(
            x,
            weight.to(x.dtype),
            mask_of(mask),
            None if bias is None else bias.to(x.dtype),
            weight_grad,
        )
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    kept = mask_of(mask) if implementation is triton else as_pattern(mask)
    out: Tensor = implementation.masked_linear(flat, weight, kept, bias, weight_grad)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], weight.shape[0])


def spmm(pattern: SparsityPattern, values: Tensor, b: Tensor) -> Tensor:
    """A sparse matrix times a dense one: ``S @ b``, S holding ``values`` where the pattern keeps.

    Args:
        pattern: of S, ``(rows, columns)``.
        values: ``(nnz,)`` in row order, as from :meth:`SparsityPattern.gather`.
        b: ``(columns, d)`` or ``(columns,)``, of the dtype and device of values; adjacent along
            either dimension.

    Returns:
        ``(rows, d)`` or ``(rows,)``. Differentiable in values and b.

    Raises:
        TypeError: for dtypes that are not floating-point or differ, or another kind of pattern.
        ValueError: for shapes or devices that do not fit.
    """
    _check_pattern(pattern)
    checks.floating_tensor(values, "values")
    checks.floating_tensor(b, "b")
    checks.same_dtype_and_device([values, b], ["values", "b"])
    _check_device(pattern, values, "values")
    if values.shape != (pattern.nnz,):
        raise ValueError(
            f"values must have shape ({pattern.nnz},), one per kept entry, got "
            f"{tuple(values.shape)}"
        )
    if b.dim() not in (1, 2) or b.shape[0] != pattern.columns:
        raise ValueError(
            f"b must have shape ({pattern.columns}, d) or ({pattern.columns},) for a pattern of "
            f"shape {tuple(pattern.shape)}, got {tuple(b.shape)}"
        )
    matrix = b[:, None] if b.dim() == 1 else b
    out: Tensor = implementation_for(b, pattern, cuda).spmm(pattern, values, matrix)
    return out[:, 0] if b.dim() == 1 else out


def sddmm(a: Tensor, b: Tensor, pattern: SparsityPattern) -> Tensor:
    """The entries of ``a @ b`` that a pattern keeps (sampled dense-dense product).

    Args:
        a: ``(rows, d)``.
        b: ``(d, columns)``, of the dtype and device of a; both adjacent along either dimension.
        pattern: ``(rows, columns)``.

    Returns:
        ``(nnz,)`` in row order. Differentiable in a and b.

    Raises:
        TypeError: for dtypes that are not floating-point or differ, or another kind of pattern.
        ValueError: for shapes or devices that do not fit.
    """
    _check_pattern(pattern)
    checks.floating_tensor(a, "a")
    checks.floating_tensor(b, "b")
    checks.same_dtype_and_device([a, b], ["a", "b"])
    _check_device(pattern, a, "a")
    for x, name, shape in (
        (a, "a", (pattern.rows, "d")),
        (b, "b", ("d", pattern.columns)),
    ):
        fits = x.dim() == 2 and all(
            wanted in ("d", size) for wanted, size in zip(shape, x.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{name} must have shape ({shape[0]}, {shape[1]}) for a pattern of shape "
                f"{tuple(pattern.shape)}, got {tuple(x.shape)}"
            )
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a has {a.shape[1]} columns and b {b.shape[0]} rows: expected the same")
    out: Tensor = implementation_for(a, pattern, cuda).sddmm(a, b, pattern)
    return out


def check_weight_grad(weight_grad: object) -> None:
    """Raises a ValueError unless it names a gradient that weights can be given."""
    if weight_grad not in _WEIGHT_GRADS:
        raise ValueError(f'weight_grad must be "masked" or "dense", got {weight_grad!r}')


def check_weight(weight: Tensor, mask: Tensor | SparsityPattern, bias: Tensor | None) -> None:
    """Checks that a mask and a bias fit a weight.

    Raises:
        TypeError: if the mask is neither a bool tensor nor a pattern.
        ValueError: for shapes or devices that do not fit.
    """
    if not isinstance(mask, SparsityPattern):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor or a SparsityPattern, got {found}")
        if mask.layout is not torch.strided:
            raise TypeError(f"mask must be a dense (strided) tensor, got layout {mask.layout}")
    if mask.shape != weight.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} and weight {tuple(weight.shape)}: "
            "expected the same"
        )
    if mask.device != weight.device:
        raise ValueError(
            f"mask is on {mask.device} and weight on {weight.device}: expected one device"
        )
    if bias is not None:
        checks.floating_tensor(bias, "bias")
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must have shape ({weight.shape[0]},), one per row of the weight, got "
                f"{tuple(bias.shape)}"
            )


def autocasts(x: Tensor) -> bool:
    """Whether autocast chooses the dtype of products with x."""
    return x.dtype != torch.float64 and _autocast_is_on(x)


def autocast_input(x: Tensor) -> Tensor:
    """Casts x as autocast casts the operands of a product, where it is on."""
    if not autocasts(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def check_types(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Checks that x, weight and bias have one device and, outside autocast, one dtype."""
    dtype, device = weight.dtype, weight.device
    fits = x.dtype is dtype and x.device == device
    if fits and (bias is None or (bias.dtype is dtype and bias.device == device)):
        return
    tensors = [weight, x] if bias is None else [weight, x, bias]
    names = ["weight", "x", "bias"][: len(tensors)]
    if autocasts(x) and weight.dtype != torch.float64:
        for tensor, name in zip(tensors, names, strict=True):
            if tensor.device != weight.device:
                raise ValueError(
                    f"{name} is on {tensor.device} and weight on {weight.device}: "
                    "expected one device"
                )
        return
    checks.same_dtype_and_device(tensors, names)


def implementation_for(
    x: Tensor,
    mask: Tensor | SparsityPattern,
    cuda: ModuleType | None = None,
    triton: ModuleType | None = None,
) -> Any:
    """The module that computes: one whose kernels run here, where the pattern is prepared for it.

    Args:
        x: whose device decides.
        mask: as the public function has it.
        cuda: the module for CUDA kernels, where the operator has some.
        triton: the module for Triton kernels, which read the mask alone.
    """
    module = back_end(x.device, reference, cpu, triton=triton, cuda=cuda)
    if module is triton:
        return module
    if isinstance(mask, SparsityPattern):
        prepared = mask.prepared_for == ("cuda" if module is cuda else "cpu")
    else:
        # A mask is prepared at run time, which a traced graph cannot: its size depends on data.
        prepared = not torch.compiler.is_compiling()
    return module if prepared else reference


def mask_of(mask: Tensor | SparsityPattern) -> Tensor:
    """The bool tensor."""
    return mask.mask if isinstance(mask, SparsityPattern) else mask


def as_pattern(mask: Tensor | SparsityPattern) -> SparsityPattern:
    """The pattern, built now if it is not one yet."""
    return mask if isinstance(mask, SparsityPattern) else SparsityPattern(mask)


def _autocast_is_on(x: Tensor) -> bool:
    if x.is_cpu:  # reading a device's type takes longer than asking this
        return torch.is_autocast_enabled("cpu")
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _check_pattern(pattern: object) -> None:
    if not isinstance(pattern, SparsityPattern):
        raise TypeError(f"pattern must be a SparsityPattern, got {type(pattern).__name__}")


def _check_device(pattern: SparsityPattern, x: Tensor, name: str) -> None:
    if pattern.device != x.device:
        raise ValueError(
            f"pattern is on {pattern.device} and {name} on {x.device}: expected one device"
        )
