"""The compiled operators as torch.library sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsekern as sk

from ..conftest import compiled_only
from . import oracle

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


pytestmark = compiled_only  # the reference has no operators


def check(name: str, *arguments: Any) -> Any:
    operator = getattr(torch.ops.sparsekern, name).default
    torch.library.opcheck(operator, arguments, test_utils=UTILITIES)
    return operator(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparse", [True, False])
def test_linear_passes_opcheck(sparse: bool, dtype: torch.dtype) -> None:
    x, weight, mask, bias = oracle.problem(6, 20, 10, 0.7, dtype)
    pattern = sk.SparsityPattern(mask).tensors
    for shift in (bias, None):
        out, values = check("masked_linear", x, weight, shift, pattern, sparse, True)
        check("masked_linear", x, weight, shift, pattern, sparse, False)
    for needs in ([True, True, True], [False, True, False], [True, False, True]):
        for straight_through in (False, True):
            check(
                "masked_linear_grad",
                torch.randn_like(out),
                x,
                weight,
                values,
                pattern,
                needs,
                straight_through,
                sparse,
                sparse,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("sparse", [True, False])
def test_convolution_passes_opcheck(
    sparse: bool, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.randn(3, 4, 7, 6).to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(8, 2, 3, 3).to(dtype), torch.randn(8).to(dtype)
    pattern = sk.SparsityPattern(torch.rand(weight.shape) > 0.7).tensors
    geometry = ([2, 1], [1, 1], [1, 1], 2)
    for shift in (bias, None):
        out, values = check("masked_conv2d", x, weight, shift, pattern, *geometry, sparse, True)
        check("masked_conv2d", x, weight, shift, pattern, *geometry, sparse, False)
    for needs in ([True, True, True], [False, True, False], [True, False, True]):
        for straight_through in (False, True):
            check(
                "masked_conv2d_grad",
                torch.randn_like(out),
                x,
                weight,
                values,
                pattern,
                *geometry,
                needs,
                straight_through,
                sparse,
                sparse,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_pass_opcheck(dtype: torch.dtype) -> None:
    pattern = sk.SparsityPattern(torch.rand(10, 20) > 0.7)
    values, b = torch.randn(pattern.nnz).to(dtype), torch.randn(20, 6).to(dtype)
    out = check("masked_spmm", values, b, pattern.tensors)
    for needs in ([True, True], [True, False], [False, True]):
        check("masked_spmm_grad", torch.randn_like(out), values, b, pattern.tensors, needs)
    a, c = torch.randn(10, 6).to(dtype), torch.randn(6, 20).to(dtype)
    sampled = check("masked_sddmm", a, c, pattern.tensors)
    for needs in ([True, True], [True, False], [False, True]):
        check("masked_sddmm_grad", torch.randn_like(sampled), a, c, pattern.tensors, needs)
