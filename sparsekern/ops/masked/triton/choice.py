"""Whether a dense product with a mask is torch's, or one of the fused kernels: a pure function.

torch writes the masked weight, or the whole gradient, and reads it again; its product is the faster
one. So fused kernels take small batches, which are bound by those bytes, and torch large ones.
Nothing of this has been measured on hardware.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .... import dispatch
from ...tiled import device
from ...tiled.configurations import configuration
from .. import cuda_rates
from ..cuda_rates import DeviceRates
from .plan import ADD, FEATURES, LONGEST, WEIGHT, Product, launches, plan

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the rate of torch's product, what a fused kernel is taken to reach: a guess. On 9.0 its left
# operand comes from registers, and no copy engine brings it.
SHARE = 0.5
_NOMINAL = 132  # multiprocessors that times are modelled with: they hardly matter
_PRODUCTS = {"tf32x3": 3}  # that one product is made of


def torch_nanoseconds(product: Product, rates: DeviceRates) -> float:
    """The modelled time by torch's product, and the masking and the casting beside it."""
    weights = product.rows * product.columns
    casts = product.weight != product.element
    if product.part == WEIGHT:
        # Written; read and written as another type; what is not kept written again.
        moved = product.bytes_of_ends + weights * product.element
        beside = weights * (casts * (product.element + product.weight))
        beside += weights * product.masked * (1 + product.element)
    else:
        moved = product.bytes_of_ends + weights * product.element + product.bytes_of_results
        beside = product.bytes_of_weight + weights * product.weight
        beside += weights * (casts * (product.weight + product.element))
    steps = 1 + product.masked + casts
    operations = product.operations / _rate(product.operands, rates)
    return steps * rates.launch + max(operations, moved / rates.memory) + beside / rates.memory


def fused_nanoseconds(product: Product, rates: DeviceRates) -> float:
    """The modelled time by the fused kernels, whole tiles counted."""
    how = plan(product, "default", _NOMINAL)
    todo = launches(product, how, configuration("default", ADD, "any", 0))
    operations = 2 * how.tiles * how.lanes * FEATURES * product.depth
    operations *= _PRODUCTS.get(product.operands, 1)
    moved = sum(one.read + one.written for one in todo) / rates.memory
    moved += sum(one.again for one in todo) / rates.cache
    rate = SHARE * _rate(product.operands, rates)
    return len(todo) * rates.launch + max(operations / rate, moved)


@functools.lru_cache(maxsize=1024)
def is_fused(product: Product, rates: DeviceRates) -> bool:
    """Whether the fused kernels are modelled faster than torch's product and what it needs."""
    return fused_nanoseconds(product, rates) < torch_nanoseconds(product, rates)


def nanoseconds(
    part: str, batch: int, rows: int, columns: int, dtype: torch.dtype, rates: DeviceRates
) -> float:
    """:func:`fused_nanoseconds` of a layer whose weight has the dtype of x; infinite if empty."""
    operands = device.matrix_operands(dtype, "cuda", True)
    if min(batch, rows, columns) < 1:
        return math.inf
    size = dtype.itemsize
    return fused_nanoseconds(Product(part, batch, rows, columns, size, size, operands), rates)


def possible(dtype: torch.dtype, kind: str, index: int | None) -> bool:
    """Whether the fused kernels may be chosen for tensors of a dtype on an NVIDIA GPU."""
    if dtype not in _DTYPES or kind != "cuda" or torch.version.hip is not None:
        return False
    return dispatch.runs_triton_kernels(torch.device(kind if index is None else f"{kind}:{index}"))


# What torch.compiler.assume_constant_result does, without importing torch._dynamo.
possible._dynamo_marked_constant = True  # type: ignore[attr-defined]


def here(part: str, x: Tensor, weight: Tensor, *, masked: bool = True, bias: bool = False) -> bool:
    """Whether a product on the tensors' device is to be a fused one; see :func:`sizes_of`."""
    if x.dtype not in _DTYPES or weight.dtype not in _DTYPES:
        return False
    if x.numel() == 0 or weight.numel() == 0 or not dispatch.runs_triton_kernels(x.device):
        return False
    if max(x.stride(0), weight.stride(0), *x.shape, *weight.shape) >= LONGEST:
        return False
    if x.device.type != "cuda" or torch.version.hip is not None:
        return dispatch.requested() == "triton"  # by name, for no rates are known
    name = torch.cuda.get_device_name(x.device)
    rates = cuda_rates.rates(name, torch.cuda.get_device_capability(x.device))
    return is_fused(sizes_of(part, x, weight, masked=masked, bias=bias), rates)


def sizes_of(
    part: str, x: Tensor, weight: Tensor, *, masked: bool = True, bias: bool = False
) -> Product:
    """The sizes of a product.

    Args:
        part: ``"forward"``, ``"input"`` or ``"weight"``.
        x: (batch, columns), or for ``"input"`` the gradient of the result, (batch, rows).
        weight: (rows, columns).
        masked: whether a mask is read.
        bias: whether a bias is added.
    """
    operands = device.matrix_operands(x.dtype, device.device_class(x.device), True)
    rows, columns = weight.shape
    sizes = (x.shape[0], rows, columns, x.element_size(), weight.element_size())
    return Product(part, *sizes, operands, masked, bias)


def _rate(operands: str, rates: DeviceRates) -> float:
    """Operations per nanosecond of torch's product, for which tf32x3 is one in TF32."""
    if operands == "ieee":
        return rates.float32
    return rates.tf32 if operands.startswith("tf32") else rates.half
