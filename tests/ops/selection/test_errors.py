"""Wrong arguments: the error names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparsekern as sk

X = torch.randn(4, 3)
FUNCTIONS = {"tensors": sk.magnitude_threshold, "scores": sk.global_masks}


@pytest.fixture(params=FUNCTIONS)
def argument(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def function(argument: str) -> Callable[..., Any]:
    return FUNCTIONS[argument]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None])
def test_sparsity(function: Callable[..., Any], wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"sparsity must be a number from 0 to 1, got '?{wrong}"):
        function([X], wrong)


def test_lists(function: Callable[..., Any], argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is empty"):
        function([], 0.5)
    with pytest.raises(TypeError, match=f"{argument} must be a list of tensors, got generator"):
        function((x for x in [X]), 0.5)
    with pytest.raises(TypeError, match=rf"{argument}\[1\] must be a tensor, got float"):
        function([X, 1.0], 0.5)
    with pytest.raises(ValueError, match=rf"{argument} has no elements.*\(0, 3\), \(2, 0\)"):
        function([torch.empty(0, 3), torch.empty(2, 0)], 0.5)


def test_dtypes_and_devices(function: Callable[..., Any], argument: str) -> None:
    with pytest.raises(TypeError, match=rf"{argument}\[0\] must be float32.*got torch.int64"):
        function([torch.ones(3, dtype=torch.int64)], 0.5)
    with pytest.raises(TypeError, match=rf"{argument}\[1\] is torch.float64 and {argument}\[0\]"):
        function([X, X.double()], 0.5)
    with pytest.raises(TypeError, match=f"{argument} must be a dense .strided. tensor"):
        function(X.to_sparse(), 0.5)
    with pytest.raises(ValueError, match=rf"{argument}\[1\] is on meta and {argument}\[0\] on cpu"):
        function([X, torch.empty(3, device="meta")], 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [10, 50_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_named(
    function: Callable[..., Any], argument: str, dtype: torch.dtype, size: int, sign: int
) -> None:
    good, bad = torch.randn(7, 2).to(dtype), torch.randn(2, size).to(dtype)
    bad[1, -1] = torch.tensor(torch.nan).copysign(torch.tensor(sign))
    for sparsity in (0.0, 0.5, 1.0):
        with pytest.raises(ValueError, match=rf"{argument}\[1\] of shape \(2, {size}\) holds NaN"):
            function([good, bad, bad], sparsity)
    with pytest.raises(ValueError, match=rf"{argument} of shape \(2, {size}\) holds NaN"):
        function(bad, 0.5)
