"""Similarity on the compiled core: memory for its calls, registration, autograd.

Every operator is registered with torch.library as a forward and a backward operator, so that
torch.compile sees opaque nodes; in eager mode the implementations are called directly, which
saves the dispatcher's 2-3 µs. The gradient is computed once: differentiating it again is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import native
from .kernels import RBF, Cosine, Kernel, Linear, Polynomial
from .layout import feature_space_is_faster, state_bytes
from .reference import accumulation_dtype

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_CENTRING = {None: 0, "double": 1, "u": 2, "biased": 1, "unbiased": 2}
_HSIC, _CKA = 0, 1
# Devices are always named: the core writes to these addresses, whatever the default device is.
_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")
_RBF = 1

# What an operator needs to know of the kernel and the centring, as plain numbers: kernel code,
# two parameters, centring code, whether features are centred first.
Spec = tuple[int, float, float, int, bool]


def hsic_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, kernel: Kernel, estimator: str
) -> Tensor:
    """See :func:`sparsekern.hsic_matrix`; arguments are checked and flattened."""
    return _compare(xs, ys, _HSIC, _spec(kernel, estimator))


def cka_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, kernel: Kernel, estimator: str
) -> Tensor:
    """See :func:`sparsekern.cka_matrix`; arguments are checked and flattened."""
    return _compare(xs, ys, _CKA, _spec(kernel, estimator))


def cka_sum(
    groups: Sequence[Sequence[Tensor]], kernel: Kernel, estimator: str, reduction: str
) -> Tensor:
    """See :func:`sparsekern.cka_sum`; arguments are checked and flattened."""
    xs = [x for group in groups for x in group]
    mean = reduction == "mean"
    sizes = [len(xs)] if mean else [len(group) for group in groups]
    spec = _spec(kernel, estimator)
    if _needs_grad(xs):
        return _Sum.apply(sizes, mean, spec, *xs)  # type: ignore[no-any-return]
    out: Tensor = _run("similarity_sum", xs, sizes, mean, *spec, False)[0]
    return out


def gram(x: Tensor, kernel: Kernel, center: str | None) -> Tensor:
    """See :func:`sparsekern.gram`; arguments are checked and flattened."""
    spec = _spec(kernel, center)
    if _needs_grad((x,)):
        return _Gram.apply(spec, x)  # type: ignore[no-any-return]
    out: Tensor = _run("similarity_gram", x, *spec)[0]
    return out


def _compare(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None, quantity: int, spec: Spec
) -> Tensor:
    first = 0 if ys is None else len(xs)
    layers = [*xs] if ys is None else [*xs, *ys]
    if _needs_grad(layers):
        return _Compare.apply(first, quantity, spec, *layers)  # type: ignore[no-any-return]
    out: Tensor = _run("similarity_compare", layers, first, quantity, *spec, False)[0]
    return out


def _spec(kernel: Kernel, centring: str | None) -> Spec:
    code = _CENTRING[centring]
    if isinstance(kernel, Linear):
        return 0, 0.0, 0.0, code, centring is not None
    if isinstance(kernel, RBF):
        return _RBF, kernel.fraction, kernel.bandwidth or 0.0, code, True
    if isinstance(kernel, Polynomial):
        return 2, float(kernel.degree), kernel.c, code, False
    assert isinstance(kernel, Cosine)
    return 3, 0.0, 0.0, code, False


def _needs_grad(xs: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in xs)


def _rows(x: Tensor) -> Tensor:
    """The features with the elements of a row adjacent, as the compiled core reads them."""
    x = x.resolve_neg()
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def _describe(xs: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    return [(x.data_ptr(), x.shape[1], x.stride(0)) for x in xs]


def _options(x: Tensor, spec: Spec, keep: bool) -> tuple[int, int, float, float, int, bool, bool]:
    return (_DTYPE_CODES[x.dtype], *spec, keep)


def _new_state(
    n: int, dims: Sequence[int], dtype: torch.dtype, in_features: bool, keep: bool
) -> Tensor:
    """Memory that outlives the call, or, where nothing is kept, an empty tensor (address 0)."""
    if not keep:
        return _NOTHING
    size = state_bytes(n, dims, dtype, in_features)
    return torch.empty(size, dtype=torch.uint8, device="cpu")


# ---- implementations on CPU tensors -------------------------------------------------------------


def _compare_impl(
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
    rows = [_rows(x) for x in xs]
    x = rows[0]
    n, count = x.shape[0], len(rows)
    dims = [row.shape[1] for row in rows]
    dtype = accumulation_dtype(x.dtype)
    out = torch.empty(first or count, count - first, dtype=dtype, device="cpu")
    spec = (kernel, parameter0, parameter1, centring, center_features)
    options = _options(x, spec, keep)
    layers = _describe(rows)
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


def _compare_grad_impl(
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
    rows = [_rows(x) for x in xs]
    x = rows[0]
    n, dims = x.shape[0], [row.shape[1] for row in rows]
    spec = (kernel, parameter0, parameter1, centring, center_features)
    options = _options(x, spec, True)
    layers = _describe(rows)
    grad = grad.contiguous()
    core, threads = native.cpu(), torch.get_num_threads()
    if feature_space_is_faster(n, dims, first, kernel, x.dtype, True):
        if state[-1]:
            flat = core.compare_weights(
                n, layers, options, quantity, first, grad.data_ptr(), state.data_ptr()
            )
            weights = [flat[at : at + len(rows)] for at in range(0, len(flat), len(rows))]
            return _feature_space_grad(rows, weights, needs, centring == _CENTRING["u"])
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


def _sum_impl(
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
    rows = [_rows(x) for x in xs]
    x = rows[0]
    dtype = accumulation_dtype(x.dtype)
    dims = [row.shape[1] for row in rows]
    state = _new_state(x.shape[0], dims, dtype, False, keep)
    out = torch.empty((), dtype=dtype, device="cpu")
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().group_sum(
        x.shape[0],
        _describe(rows),
        _options(x, spec, keep),
        list(sizes),
        mean,
        state.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out, state


def _sum_grad_impl(
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
    rows = [_rows(x) for x in xs]
    gradients, addresses = _allocate_gradients(rows, needs)
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().group_sum_grad(
        rows[0].shape[0],
        _describe(rows),
        _options(rows[0], spec, True),
        list(sizes),
        mean,
        grad.contiguous().data_ptr(),
        state.data_ptr(),
        addresses,
        torch.get_num_threads(),
    )
    return _as_inputs(gradients, rows)


def _gram_impl(
    x: Tensor,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> tuple[Tensor, Tensor]:
    x = _rows(x)
    n = x.shape[0]
    dtype = accumulation_dtype(x.dtype)
    state = _new_state(n, [x.shape[1]], dtype, False, True)
    out = torch.empty(n, n, dtype=dtype, device="cpu")
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().dense(
        n,
        _describe([x]),
        _options(x, spec, True),
        state.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out, state


def _gram_grad_impl(
    grad: Tensor,
    x: Tensor,
    state: Tensor,
    kernel: int,
    parameter0: float,
    parameter1: float,
    centring: int,
    center_features: bool,
) -> Tensor:
    x = _rows(x)
    gradients, addresses = _allocate_gradients([x], [True])
    grad = grad.contiguous()
    spec = (kernel, parameter0, parameter1, centring, center_features)
    native.cpu().dense_grad(
        x.shape[0],
        _describe([x]),
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
    gradients = [
        torch.empty(x.shape if needed else (0,), dtype=accumulation_dtype(x.dtype), device="cpu")
        for x, needed in zip(xs, needs, strict=True)
    ]
    addresses = [
        gradient.data_ptr() if needed else 0
        for gradient, needed in zip(gradients, needs, strict=True)
    ]
    return gradients, addresses


def _as_inputs(gradients: list[Tensor], xs: Sequence[Tensor]) -> list[Tensor]:
    return [gradient.to(x.dtype) for gradient, x in zip(gradients, xs, strict=True)]


# ---- registration -------------------------------------------------------------------------------

_SPEC = "int kernel, float parameter0, float parameter1, int centring, bool center_features"
_SCHEMAS = {
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
    "similarity_compare": _compare_impl,
    "similarity_compare_grad": _compare_grad_impl,
    "similarity_sum": _sum_impl,
    "similarity_sum_grad": _sum_grad_impl,
    "similarity_gram": _gram_impl,
    "similarity_gram_grad": _gram_grad_impl,
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
    out = x.new_empty(first or len(xs), len(xs) - first, dtype=accumulation_dtype(x.dtype))
    dims = [layer.shape[1] for layer in xs]
    in_features = feature_space_is_faster(x.shape[0], dims, first, kernel, x.dtype, rest[-1])
    return out, _fake_state(xs, in_features, rest[-1])


def _sum_fake(xs: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    out = xs[0].new_empty((), dtype=accumulation_dtype(xs[0].dtype))
    return out, _fake_state(xs, False, rest[-1])


def _gram_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    n = x.shape[0]
    return x.new_empty(n, n, dtype=accumulation_dtype(x.dtype)), _fake_state([x], False, True)


def _grads_fake(
    grad: Tensor, xs: Sequence[Tensor], state: Tensor, needs: Sequence[bool], *_: Any
) -> list[Tensor]:
    return [x.new_empty(x.shape if needed else (0,)) for x, needed in zip(xs, needs, strict=True)]


def _gram_grad_fake(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


_FAKES: dict[str, Any] = {
    "similarity_compare": _compare_fake,
    "similarity_compare_grad": _grads_fake,
    "similarity_sum": _sum_fake,
    "similarity_sum_grad": _grads_fake,
    "similarity_gram": _gram_fake,
    "similarity_gram_grad": _gram_grad_fake,
}

_library = torch.library.Library("sparsekern", "FRAGMENT")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _IMPLEMENTATIONS[_name], "CPU")
    torch.library.register_fake(f"sparsekern::{_name}", _FAKES[_name], lib=_library)


def _run(name: str, *arguments: Any) -> Any:
    """Calls an operator: itself in eager mode on plain tensors, else through the dispatcher."""
    if torch.compiler.is_compiling() or not all(map(_is_plain, arguments)):
        return getattr(torch.ops.sparsekern, name)(*arguments)
    return _IMPLEMENTATIONS[name](*arguments)


def _is_plain(argument: Any) -> bool:
    """False for tensor subclasses, which may have no memory of their own, and lists with one."""
    if type(argument) is list:
        return all(map(_is_plain, argument))
    return not isinstance(argument, Tensor) or type(argument) in (Tensor, torch.nn.Parameter)


# ---- autograd -----------------------------------------------------------------------------------


class _Once(torch.autograd.Function):
    """Identity on gradients that cannot be differentiated again; says so if anybody tries."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "the gradient of sparsekern's compiled similarity operators cannot be differentiated "
            'again; compute them inside `with sparsekern.backend("reference"):` for that'
        )


def _differentiable_once(grad: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled():  # create_graph=True
        source = grad if grad.requires_grad else grad.detach().requires_grad_()
        return _Once.apply(source, *gradients)  # type: ignore[no-any-return]
    return tuple(gradients)


def _only_needed(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(
        gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)
    )


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: int, quantity: int, spec: Spec, *xs: Tensor) -> Tensor:
        out, state = _run("similarity_compare", list(xs), first, quantity, *spec, True)
        ctx.save_for_backward(state, *xs)
        ctx.arguments = (first, quantity, *spec)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, *xs = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[3:])
        gradients = _run_grad("similarity_compare_grad", grads[0], xs, state, needs, ctx.arguments)
        return (None, None, None, *_only_needed(gradients, needs))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: list[int], mean: bool, spec: Spec, *xs: Tensor) -> Tensor:
        out, state = _run("similarity_sum", list(xs), sizes, mean, *spec, True)
        ctx.save_for_backward(state, *xs)
        ctx.arguments = (sizes, mean, *spec)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, *xs = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[3:])
        gradients = _run_grad("similarity_sum_grad", grads[0], xs, state, needs, ctx.arguments)
        return (None, None, None, *_only_needed(gradients, needs))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: Spec, x: Tensor) -> Tensor:
        out, state = _run("similarity_gram", x, *spec)
        ctx.save_for_backward(state, x)
        ctx.spec = spec
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        state, x = ctx.saved_tensors
        grad = grads[0]
        gradient = _run("similarity_gram_grad", grad.detach(), x.detach(), state, *ctx.spec)
        return None, *_differentiable_once(grad, [gradient])


def _run_grad(
    name: str,
    grad: Tensor,
    xs: Sequence[Tensor],
    state: Tensor,
    needs: list[bool],
    arguments: tuple[Any, ...],
) -> Sequence[Tensor]:
    detached = [x.detach() for x in xs]
    gradients = _run(name, grad.detach(), detached, state, needs, *arguments)
    return _differentiable_once(grad, gradients)
