"""The operators of masked products on CUDA kernels: each part by the algorithm that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import precision
from ..memory import contiguous
from ..precision import accumulation_dtype
from . import cuda_dense, cuda_unstructured

# By the names of cuda_choice. Each has forward, input_grad and weight_grad, of the signatures that
# cuda_dense has.
ALGORITHMS: dict[str, ModuleType] = {"dense": cuda_dense, "unstructured": cuda_unstructured}


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    algorithm: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """``x (W⊙M)ᵀ + b`` for x of shape (batch, columns), in the dtype of x.

    Args:
        x: (batch, columns).
        weight: (rows, columns), of the dtype of x or (autocast) another one.
        bias: (rows,) or None.
        pattern: :attr:`SparsityPattern.tensors`.
        algorithm: a name of :data:`ALGORITHMS`.
        keep: whether what the algorithm has of the weight is wanted for the gradient.

    Returns:
        The result, and what was kept.
    """
    with precision.without_autocast(x):
        out, kept = ALGORITHMS[algorithm].forward(x, weight, bias, pattern, keep)
    return out, kept.to(accumulation_dtype(x.dtype))


def masked_linear_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: Tensor,
    pattern: Sequence[Tensor],
    needs: Sequence[bool],
    straight_through: bool,
    input_algorithm: str,
    weight_algorithm: str,
) -> list[Tensor]:
    """The gradients of :func:`masked_linear` for x, the weight and the bias; empty if not needed.

    Args:
        grad: (batch, rows), of the result.
        x: as in the forward pass.
        weight: as in the forward pass.
        kept: what the forward pass kept, whichever algorithm it took.
        pattern: as in the forward pass.
        needs: which gradients.
        straight_through: the dense gradient of the weight, as if there were no mask.
        input_algorithm: for the gradient of x.
        weight_algorithm: for the masked gradient of the weight.
    """
    results = [grad.new_empty(0), weight.new_empty(0), grad.new_empty(0)]
    with precision.without_autocast(grad):
        if needs[0]:
            results[0] = ALGORITHMS[input_algorithm].input_grad(grad, weight, kept, pattern)
        if needs[1] and straight_through:
            results[1] = cuda_dense.straight_through_grad(grad, x, weight)
        elif needs[1]:
            results[1] = ALGORITHMS[weight_algorithm].weight_grad(grad, x, weight, pattern)
        if needs[2]:
            results[2] = grad.sum(dim=0)
    return results


def spmm(values: Tensor, b: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """The matrix of these kept values times b: (columns, d) -> (rows, d)."""
    return _times(values, b, pattern, transposed=False)


def spmm_grad(
    grad: Tensor, values: Tensor, b: Tensor, pattern: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """The gradients of :func:`spmm` for values and b; empty where not needed."""
    values_grad = sddmm(grad, b.t(), pattern) if needs[0] else values.new_empty(0)
    b_grad = _times(values, grad, pattern, transposed=True) if needs[1] else b.new_empty(0)
    return [values_grad, b_grad]


def sddmm(a: Tensor, b: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    """The entries of ``a @ b`` at the kept positions, in row order."""
    out = torch.empty(pattern[2].shape, dtype=a.dtype, device=a.device)
    left = cuda_unstructured.feature_major(a.t())
    right = cuda_unstructured.feature_major(b)
    cuda_unstructured.sampled(left, right, pattern, out, dense=False)
    return out


def sddmm_grad(
    grad: Tensor, a: Tensor, b: Tensor, pattern: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """The gradients of :func:`sddmm` for a and b; empty where not needed."""
    a_grad = _times(grad, b.t(), pattern, transposed=False) if needs[0] else a.new_empty(0)
    b_grad = _times(grad, a, pattern, transposed=True).t() if needs[1] else b.new_empty(0)
    return [a_grad, b_grad]


def _times(values: Tensor, b: Tensor, pattern: Sequence[Tensor], *, transposed: bool) -> Tensor:
    wide = contiguous(values.to(accumulation_dtype(values.dtype)))
    turned = cuda_unstructured.feature_major(b.t())
    out = cuda_unstructured.product(wide, None, turned, pattern, transposed=transposed)
    return out[:, : b.shape[1]].contiguous()
