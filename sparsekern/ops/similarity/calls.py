"""Calls of the compiled similarity core: memory for their results, addresses in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ..memory import contiguous
from ..precision import accumulation_dtype
from ..registry import DTYPE_CODES
from .layout import feature_space_is_faster, result_shape, state_bytes

DOUBLE_CENTRING, U_CENTRING = 1, 2
_PRECISIONS = {"highest": 0, "high": 1, "medium": 2}
# Devices are always named: the core writes to these addresses, whatever the default device is.
_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")
_RESULTS = {
    dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)
}

# What the core needs to know of the kernel and the centring, as plain numbers: kernel code, two
# parameters, centring code, whether features are centred first.
Spec = tuple[int, float, float, int, bool]


# A row of a layer: its address, features and distance to the next row, in elements.
Layer = tuple[int, int, int]


def _described(xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Layer]]:
    """The features as the core reads them, elements of a row adjacent, and where they lie."""
    rows: list[Tensor] = []
    layers: list[Layer] = []
    for x in xs:
        features = x.shape[1]
        distance, step = x.stride()
        if (step != 1 and features > 1) or x.is_neg():
            x = contiguous(x)
            distance = x.stride(0)
        rows.append(x)
        layers.append((x.data_ptr(), features, distance))
    return rows, layers


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty result; made like another tensor, it takes half the time of naming a device."""
    like = _RESULTS[dtype]
    return like.new_empty(*shape) if shape else torch.empty_like(like)


def _options(
    x: Tensor, spec: Spec, keep: bool
) -> tuple[int, int, float, float, int, bool, bool, int]:
    precision = _PRECISIONS[torch.get_float32_matmul_precision()]
    return (DTYPE_CODES[x.dtype], *spec, keep, precision)


def _new_state(
    n: int, dims: Sequence[int], dtype: torch.dtype, in_features: bool, keep: bool
) -> Tensor:
    """Memory that outlives the call, or, where nothing is kept, an empty tensor (address 0)."""
    if not keep:
        return _NOTHING
    return _NOTHING.new_empty(state_bytes(n, dims, dtype, in_features))


def compare(
    xs: Sequence[Tensor],
    first: int,
    quantity: int,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """HSIC or CKA between layers: the first ``first`` with the others, or (0) all with all.

    Returns:
        The matrix, or for one pair its scalar, and what :func:`compare_grad` needs of it (nothing
        unless ``keep``).
    """
    rows, layers = _described(xs)
    x = rows[0]
    n = x.shape[0]
    dims = [layer[1] for layer in layers]
    dtype = accumulation_dtype(x.dtype)
    out = _new(result_shape(first, len(rows)), dtype)
    spec = (kernel, parameter0, parameter1, centring, center_features)
    options = _options(x, spec, keep)
    core, threads = native.cpu(), torch.get_num_threads()
    in_features = feature_space_is_faster(n, dims, first, kernel, x.dtype, keep)
    state = _new_state(n, dims, dtype, in_features, keep)
    if not in_features:
        core.compare(n, layers, options, quantity, first, state.data_ptr(), out.data_ptr(), threads)
        return out, state
    exact = core.compare_in_feature_space(
        n, layers, options, quantity, first, state.data_ptr(), out.data_ptr(), threads
    )
    if keep:
        state[-1] = int(exact)
    if not exact:
        core.compare(n, layers, options, quantity, first, 0, out.data_ptr(), threads)
    return out, state


def compare_grad(
    grad: Tensor,
    xs: Sequence[Tensor],
    state: Tensor,
    needs: Sequence[bool],
    first: int,
    quantity: int,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> list[Tensor]:
    """Gradients of :func:`compare`, one per layer; an empty tensor where ``needs`` is False."""
    rows, layers = _described(xs)
    x = rows[0]
    n, dims = x.shape[0], [layer[1] for layer in layers]
    spec = (kernel, parameter0, parameter1, centring, center_features)
    options = _options(x, spec, True)
    grad = contiguous(grad)
    core, threads = native.cpu(), torch.get_num_threads()
    if feature_space_is_faster(n, dims, first, kernel, x.dtype, True):
        if state[-1]:
            flat = core.compare_weights(
                n, layers, options, quantity, first, grad.data_ptr(), state.data_ptr()
            )
            weights = [flat[at : at + len(rows)] for at in range(0, len(flat), len(rows))]
            return _feature_space_grad(rows, weights, needs, centring == U_CENTRING)
        # The forward pass found feature space too inexact here, and kept nothing of value.
        state = _new_state(n, dims, grad.dtype, False, True)
        out = torch.empty_like(grad)
        core.compare(n, layers, options, quantity, first, state.data_ptr(), out.data_ptr(), threads)
    gradients, addresses = _allocate_gradients(rows, needs)
    core.compare_grad(
        n,
        layers,
        options,
        quantity,
        first,
        grad.data_ptr(),
        state.data_ptr(),
        addresses,
        threads,
    )
    return _as_inputs(gradients, rows)


def _feature_space_grad(
    xs: Sequence[Tensor], weights: Sequence[Sequence[float]], needs: Sequence[bool], unbiased: bool
) -> list[Tensor]:
    """``d loss / dX_l = 2 H Σ_m w[l, m] (X_m X_mᵀ - diagonal part) X_l`` by d x d products."""
    with torch.autocast("cpu", enabled=False):
        return _feature_space_products(xs, weights, needs, unbiased)


def _feature_space_products(
    xs: Sequence[Tensor], weights: Sequence[Sequence[float]], needs: Sequence[bool], unbiased: bool
) -> list[Tensor]:
    n = xs[0].shape[0]
    centred = [x - x.mean(dim=0, dtype=torch.float64).to(x.dtype) for x in xs]
    squares = [x.square().sum(dim=1, dtype=torch.float64) for x in centred]
    gradients = []
    for index, x in enumerate(centred):
        if not needs[index]:
            gradients.append(x.new_empty(0))
            continue
        gradient = torch.zeros_like(x)
        row_weights = torch.zeros(n, dtype=torch.float64, device="cpu")
        for other, (y, norms) in enumerate(zip(centred, squares, strict=True)):
            weight = 2 * weights[index][other]
            if weight == 0:
                continue
            gradient.addmm_(y, torch.mm(y.T, x), alpha=weight)
            if unbiased:
                row_weights -= weight * n / (n - 2) * norms
                row_weights += weight * norms.sum() / ((n - 1) * (n - 2))
        if unbiased:
            gradient += row_weights.to(x.dtype)[:, None] * x
            gradient -= gradient.mean(dim=0, dtype=torch.float64).to(x.dtype)
        gradients.append(gradient)
    return gradients


def group_sum(
    xs: Sequence[Tensor],
    sizes: Sequence[int],
    mean: bool,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """CKA summed inside groups of consecutive layers, or its mean over the pairs of one group.

    Returns:
        The scalar, and what :func:`group_sum_grad` needs of it (nothing unless ``keep``).
    """
    rows, layers = _described(xs)
    x = rows[0]
    dtype = accumulation_dtype(x.dtype)
    dims = [layer[1] for layer in layers]
    state = _new_state(x.shape[0], dims, dtype, False, keep)
    out = _new((), dtype)
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().group_sum(
        x.shape[0],
        layers,
        _options(x, spec, keep),
        list(sizes),
        mean,
        state.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out, state


def group_sum_grad(
    grad: Tensor,
    xs: Sequence[Tensor],
    state: Tensor,
    needs: Sequence[bool],
    sizes: Sequence[int],
    mean: bool,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> list[Tensor]:
    """Gradients of :func:`group_sum`, one per layer; an empty tensor where ``needs`` is False."""
    rows, layers = _described(xs)
    gradients, addresses = _allocate_gradients(rows, needs)
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().group_sum_grad(
        rows[0].shape[0],
        layers,
        _options(rows[0], spec, True),
        list(sizes),
        mean,
        contiguous(grad).data_ptr(),
        state.data_ptr(),
        addresses,
        torch.get_num_threads(),
    )
    return _as_inputs(gradients, rows)


def gram(
    x: Tensor,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> tuple[Tensor, Tensor]:
    """One layer's Gram matrix, and what :func:`gram_grad` needs of it."""
    (x,), layers = _described([x])
    n = x.shape[0]
    dtype = accumulation_dtype(x.dtype)
    state = _new_state(n, [x.shape[1]], dtype, False, True)
    out = _new((n, n), dtype)
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().dense(
        n,
        layers,
        _options(x, spec, True),
        state.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out, state


def gram_grad(
    grad: Tensor,
    x: Tensor,
    state: Tensor,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> Tensor:
    """The gradient of :func:`gram`."""
    (x,), layers = _described([x])
    gradients, addresses = _allocate_gradients([x], [True])
    grad = contiguous(grad)
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().dense_grad(
        x.shape[0],
        layers,
        _options(x, spec, True),
        grad.data_ptr(),
        state.data_ptr(),
        addresses[0],
        torch.get_num_threads(),
    )
    return _as_inputs(gradients, [x])[0]


def _allocate_gradients(
    xs: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[list[Tensor], list[int]]:
    """Contiguous memory for the gradients that are needed; an address of 0 skips a layer."""
    dtype = accumulation_dtype(xs[0].dtype)
    gradients: list[Tensor] = []
    addresses: list[int] = []
    for x, needed in zip(xs, needs, strict=True):
        if not needed:
            gradients.append(_new((0,), dtype))
            addresses.append(0)
            continue
        # Like x is quickest: a shape takes as long to hand over as the memory to get.
        alike = x.dtype is dtype and x.is_contiguous()
        gradient = torch.empty_like(x) if alike else _new(tuple(x.shape), dtype)
        gradients.append(gradient)
        addresses.append(gradient.data_ptr())
    return gradients, addresses


def _as_inputs(gradients: list[Tensor], xs: Sequence[Tensor]) -> list[Tensor]:
    if gradients[0].dtype == xs[0].dtype:
        return gradients
    return [gradient.to(x.dtype) for gradient, x in zip(gradients, xs, strict=True)]
