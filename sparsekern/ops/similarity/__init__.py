"""Gram matrices, HSIC and CKA: the public functions, their checks and shapes.

Precision: sums are taken in float32 for 16- and 32-bit features, in float64 for float64 ones. The
products of float32 features follow ``torch.set_float32_matmul_precision``. Centred bfloat16
features are multiplied as bfloat16 where the processor can (AVX512-BF16, AMX), else as float32.
Products leave the range of float32 where features vary by more than about 1e18, which is refused,
or by less than about 1e-18, where they count as constant: scale such features, or pass float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import checks
from ..registry import back_end
from . import cpu, reference, triton
from .kernels import RBF, Cosine, Kernel, Linear, Polynomial, resolve_kernel

__all__ = [
    "RBF",
    "Cosine",
    "Linear",
    "Polynomial",
    "cka",
    "cka_matrix",
    "cka_sum",
    "gram",
    "hsic",
    "hsic_matrix",
]

_LEAST_SAMPLES = {"unbiased": 4, "biased": 2}
_STRIDED = torch.strided


def gram(x: Tensor, kernel: str | Kernel = "linear", *, center: str | None = None) -> Tensor:
    """The Gram matrix of one layer's features.

    Args:
        x: ``(n, ...)`` features of n samples, flattened to ``(n, d)``; float32, float64, bfloat16
            or float16.
        kernel: ``"linear"``, ``"rbf"``, ``"polynomial"``, ``"cosine"``, or a kernel object.
        center: ``None`` for ``K[i, j] = k(x[i], x[j])`` as it is, ``"double"`` for ``H K H``,
            ``"u"`` for U-centring (zero diagonal and row sums; Székely & Rizzo 2014).

    Returns:
        ``(n, n)``, float64 for float64 features, else float32. Differentiable.

    Raises:
        TypeError: for something else than a floating-point tensor.
        ValueError: for no samples, fewer than 3 samples with ``"u"``, or features that are not
            finite (told on the CPU only: elsewhere NaN propagates, for a check would stall the
            device).
    """
    resolved = resolve_kernel(kernel)
    if center not in (None, "double", "u"):
        raise ValueError(f'center must be None, "double" or "u", got {center!r}')
    _check_features(x, "x")
    features = _flatten(x)
    n = features.shape[0]
    least = 3 if center == "u" else 1
    if n < least:
        raise ValueError(
            f"x has {n} samples (shape {tuple(x.shape)}); center={center!r} needs at least {least}"
        )
    result = _implementation(features).gram(features, resolved, center)
    return _finite(result, [features], lambda: ["x"])


def hsic(
    x: Tensor, y: Tensor, *, kernel: str | Kernel = "linear", estimator: str = "unbiased"
) -> Tensor:
    """The Hilbert-Schmidt independence criterion of two sets of features of the same samples.

    Args:
        x: ``(n, ...)``, flattened to ``(n, d)``.
        y: ``(n, ...)``, with the dtype and device of ``x``; its feature count may differ.
        kernel: as in :func:`gram`, applied to both.
        estimator: ``"unbiased"`` (HSIC_1, Song et al. 2012, n >= 4; may be negative) or
            ``"biased"`` (``tr(K H L H) / (n-1)²``, Gretton et al. 2005, n >= 2).

    Returns:
        A scalar, float64 for float64 features, else float32. Differentiable.

    Raises:
        TypeError, ValueError: as :func:`hsic_matrix`.
    """
    return _pair("hsic", x, y, kernel, estimator)


def cka(
    x: Tensor, y: Tensor, *, kernel: str | Kernel = "linear", estimator: str = "unbiased"
) -> Tensor:
    """Centred kernel alignment, ``HSIC(x, y) / √(HSIC(x, x) HSIC(y, y))`` (Kornblith et al. 2019).

    The arguments, result and errors are those of :func:`hsic`. In ``[-1, 1]`` with the unbiased
    estimator (its mean is 0 for independent features), in ``[0, 1]`` with the biased one, and 0
    with zero gradient where a layer's centred Gram matrix is no more than rounding (constant
    features, identical samples, orthonormal rows).
    """
    return _pair("cka", x, y, kernel, estimator)


def hsic_matrix(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None = None,
    *,
    kernel: str | Kernel = "linear",
    estimator: str = "unbiased",
) -> Tensor:
    """HSIC between every layer of ``xs`` and every layer of ``ys`` (of ``xs`` itself if None).

    Args:
        xs: features per layer, each ``(n, ...)``, flattened to ``(n, d_l)``: the same n, dtype and
            device in all, any d_l.
        ys: a second list over the same samples.
        kernel: as in :func:`gram`, applied to every layer.
        estimator: ``"unbiased"`` or ``"biased"``, see :func:`hsic`.

    Returns:
        ``(len(xs), len(ys or xs))``, float64 for float64 features, else float32. Differentiable.

    Raises:
        TypeError: for something else than floating-point tensors of one dtype.
        ValueError: for an empty list, layers that differ in n or device, fewer than 4 (unbiased)
            or 2 (biased) samples, or features that are not finite (told on the CPU only).
    """
    return _matrix("hsic_matrix", xs, ys, kernel, estimator)


def cka_matrix(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None = None,
    *,
    kernel: str | Kernel = "linear",
    estimator: str = "unbiased",
) -> Tensor:
    """CKA between every layer of ``xs`` and every layer of ``ys`` (of ``xs`` itself if None).

    The arguments, result and errors are those of :func:`hsic_matrix`; the values those of
    :func:`cka`. Every Gram matrix is made once, however many pairs it takes part in.
    """
    return _matrix("cka_matrix", xs, ys, kernel, estimator)


def cka_sum(
    groups: Sequence[Sequence[Tensor]],
    *,
    kernel: str | Kernel = "linear",
    estimator: str = "unbiased",
    reduction: str = "sum",
) -> Tensor:
    """The CKA-SR loss: interlayer similarity summed inside groups of layers (Ni et al. 2023).

    Args:
        groups: a list of lists of features (the stages of a network), each ``(n, ...)``; one n,
            dtype and device in all.
        kernel: as in :func:`gram`.
        estimator: ``"unbiased"`` or ``"biased"``, see :func:`hsic`.
        reduction: ``"sum"`` for ``Σ_groups Σ_{i,j} CKA(x_i, x_j)`` over ordered pairs, the
            constant ``i = j`` included; ``"mean"`` for the mean over the pairs ``i < j`` of all
            layers of all groups (the form of AugCKA-SR), 0 where there is one layer only.

    Returns:
        A scalar, float64 for float64 features, else float32. Differentiable.

    Raises:
        TypeError, ValueError: as :func:`hsic_matrix`; ValueError for an empty group.
    """
    resolved = resolve_kernel(kernel)
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction must be "sum" or "mean", got {reduction!r}')
    if isinstance(groups, Tensor) or not isinstance(groups, Sequence):
        raise TypeError(f"groups must be a list of lists of tensors, got {type(groups).__name__}")
    if not groups:
        raise ValueError("groups is empty: expected at least one list of features")
    layers: list[Tensor] = []
    for index, group in enumerate(groups):
        _check_list(group, f"groups[{index}]")
        layers += group

    def names() -> list[str]:
        return [f"groups[{i}][{j}]" for i, group in enumerate(groups) for j in range(len(group))]

    flat = _check_layers(layers, names, estimator)
    sizes = [len(group) for group in groups]
    result = _implementation(flat[0]).cka_sum(_split(flat, sizes), resolved, estimator, reduction)
    return _finite(result, flat, names)


def _pair(operator: str, x: Tensor, y: Tensor, kernel: str | Kernel, estimator: str) -> Tensor:
    resolved = resolve_kernel(kernel)
    flat = _check_layers((x, y), _pair_names, estimator)
    function: Callable[..., Tensor] = getattr(_implementation(flat[0]), operator)
    return _finite(function(flat[0], flat[1], resolved, estimator), flat, _pair_names)


def _matrix(
    operator: str,
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None,
    kernel: str | Kernel,
    estimator: str,
) -> Tensor:
    resolved = resolve_kernel(kernel)
    _check_list(xs, "xs")
    layers = list(xs)
    if ys is not None:
        _check_list(ys, "ys")
        layers += ys

    def names() -> list[str]:
        lists = (("xs", xs), ("ys", ys or ()))
        return [f"{name}[{index}]" for name, given in lists for index in range(len(given))]

    flat = _check_layers(layers, names, estimator)
    first, second = flat[: len(xs)], (None if ys is None else flat[len(xs) :])
    function: Callable[..., Tensor] = getattr(_implementation(flat[0]), operator)
    return _finite(function(first, second, resolved, estimator), flat, names)


def _implementation(x: Tensor) -> Any:
    return back_end(x.device, reference, cpu, triton)


def _split(items: list[Tensor], sizes: list[int]) -> list[list[Tensor]]:
    iterator = iter(items)
    return [[next(iterator) for _ in range(size)] for size in sizes]


def _pair_names() -> Sequence[str]:
    return ("x", "y")


def _check_list(layers: Sequence[Tensor], argument: str) -> None:
    checks.list_of(layers, argument, of="tensor of features")


def _flatten(x: Tensor) -> Tensor:  # (n, ...) -> (n, d)
    dimensions = x.dim()
    return x if dimensions == 2 else x[:, None] if dimensions == 1 else x.flatten(1)


def _check_features(x: Tensor, argument: str) -> None:
    checks.floating_tensor(x, argument)
    if x.dim() == 0:
        raise ValueError(f"{argument} must have shape (n, ...), got a scalar")


def _check_layers(
    layers: Sequence[Tensor], names: Callable[[], Sequence[str]], estimator: str
) -> list[Tensor]:
    """The features flattened to (n, d), if all are as they should be; ``names`` are for errors."""
    if not isinstance(estimator, str) or estimator not in _LEAST_SAMPLES:
        raise ValueError(f'estimator must be "unbiased" or "biased", got {estimator!r}')
    first, least = layers[0], _LEAST_SAMPLES[estimator]
    if isinstance(first, Tensor) and first.dim() and first.dtype in checks.FLOATING:
        # One look at each; which one is wrong, and why, is found out only if one is.
        n, dtype, device = first.shape[0], first.dtype, first.device
        flat = [
            _flatten(x)
            for x in layers
            if isinstance(x, Tensor)
            and x.layout is _STRIDED
            and x.dtype is dtype
            and x.device == device
            and x.dim()
            and x.shape[0] == n
        ]
        if n >= least and len(flat) == len(layers):
            return flat
    _refuse(layers, names(), estimator)


def _refuse(layers: Sequence[Tensor], names: Sequence[str], estimator: str) -> NoReturn:
    """Raises what is wrong with features, of which one does not fit or which are too few."""
    first = layers[0]
    _check_features(first, names[0])
    n = first.shape[0]
    for x, name in zip(layers[1:], names[1:], strict=True):
        _check_features(x, name)
        if x.shape[0] != n:
            raise ValueError(
                f"{name} has {x.shape[0]} samples and {names[0]} has {n}: "
                "all features must come from the same samples"
            )
        checks.same_dtype_and_device((first, x), (names[0], name))
    raise ValueError(
        f"{names[0]} has {n} samples (shape {tuple(first.shape)}); "
        f"the {estimator} estimator needs at least {_LEAST_SAMPLES[estimator]}"
    )


def _finite(result: Tensor, layers: Sequence[Tensor], names: Callable[[], Sequence[str]]) -> Tensor:
    """Names the layer that made a result NaN or infinite, where looking costs no device sync."""
    if torch.compiler.is_compiling() or not result.is_cpu or type(result) is not Tensor:
        return result
    if torch._C._are_functorch_transforms_active():
        return result  # vmap has no single number to look at
    # The sum of finite numbers may overflow, but no sum hides one that is not finite.
    total = result if result.dim() == 0 else result.detach().sum()
    if math.isfinite(total.item()) or torch.isfinite(result.detach()).all():
        return result
    named = names()
    for x, name in zip(layers, named, strict=True):
        if not torch.isfinite(x.detach()).all():
            raise ValueError(
                f"{name} of shape {tuple(x.shape)} holds values that are not finite "
                "(NaN or infinity)"
            )
    peaks = [x.detach().abs().max().item() if x.numel() else 0.0 for x in layers]
    peak = max(peaks)
    raise ValueError(
        f"the result leaves the range of {result.dtype}: the features are finite but too large, "
        f"up to {peak:.2g} in {named[peaks.index(peak)]}; scale them or pass float64"
    )
