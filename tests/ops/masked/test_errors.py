"""Bad input: an error that names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparsekern as sk

MASK = torch.ones(5, 7, dtype=torch.bool)
PATTERN = sk.SparsityPattern(MASK)
X, W, B = torch.randn(4, 7), torch.randn(5, 7), torch.randn(5)

CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: sk.SparsityPattern([1]), TypeError, "mask must be a bool tensor, got list"),
    (lambda: sk.SparsityPattern(W), TypeError, "mask must be a bool tensor, got torch.float32"),
    (lambda: sk.SparsityPattern(MASK[0, 0]), ValueError, "mask must have shape .* got a scalar"),
    (lambda: sk.SparsityPattern(MASK.to_sparse()), TypeError, "mask must be a dense"),
    (lambda: sk.SparsityPattern(MASK.to("meta")), ValueError, "mask is on meta, where it has no"),
    (lambda: PATTERN.update_(MASK[:4]), ValueError, r"mask has shape \(4, 7\) and the pattern"),
    (lambda: PATTERN.update_(MASK.to("meta")), ValueError, "mask is on meta"),
    (lambda: PATTERN.gather(W.T), ValueError, r"weight has shape \(7, 5\)"),
    (lambda: PATTERN.scatter(X), ValueError, r"values must have shape \(35,\)"),
    (lambda: PATTERN.to_sparse(W.flatten(), torch.strided), ValueError, "layout must be"),
    (lambda: PATTERN.to_sparse(W.flatten(), torch.sparse_bsr), ValueError, "blocksize must be two"),
    (lambda: sk.SparsityPattern.from_sparse(W), TypeError, "matrix must have a sparse layout"),
    (lambda: sk.masked_linear(3, W, MASK), TypeError, "x must be a tensor, got int"),
    (lambda: sk.masked_linear(X.long(), W, MASK), TypeError, "x must be float32, .*int64"),
    (lambda: sk.masked_linear(X, W.to_sparse(), MASK), TypeError, "weight must be a dense"),
    (lambda: sk.masked_linear(X, W[0], MASK), ValueError, r"weight must have shape \(rows, colu"),
    (lambda: sk.masked_linear(X[:, 1:], W, MASK), ValueError, r"x must have shape \(\.\.\., 7\)"),
    (lambda: sk.masked_linear(X[0, 0], W, MASK), ValueError, r"x must have shape .* got \(\)"),
    (lambda: sk.masked_linear(X, W, W), TypeError, "mask must be a bool tensor or a Sparsity"),
    (lambda: sk.masked_linear(X, W, 0.9), TypeError, "mask must be .* got float"),
    (lambda: sk.masked_linear(X, W, MASK[:4]), ValueError, r"mask has shape \(4, 7\) and weight"),
    (lambda: sk.masked_linear(X, W[:4], PATTERN), ValueError, r"mask has shape \(5, 7\)"),
    (lambda: sk.masked_linear(X, W, MASK.to("meta")), ValueError, "mask is on meta and weight on"),
    (lambda: sk.masked_linear(X.double(), W, MASK), TypeError, "x is torch.float64 and weight is"),
    (lambda: sk.masked_linear(X, W, MASK, B.half()), TypeError, "bias is torch.float16 and weigh"),
    (lambda: sk.masked_linear(X, W, MASK, B[:4]), ValueError, r"bias must have shape \(5,\)"),
    (lambda: sk.masked_linear(X.to("meta"), W, MASK), ValueError, "x is on meta and weight on cp"),
    (lambda: sk.masked_linear(X, W, MASK, weight_grad="x"), ValueError, "weight_grad must be"),
    (lambda: sk.spmm(MASK, W.flatten(), X.T), TypeError, "pattern must be a SparsityPattern"),
    (lambda: sk.spmm(PATTERN, W, X.T), ValueError, r"values must have shape \(35,\)"),
    (lambda: sk.spmm(PATTERN, W.flatten(), X), ValueError, r"b must have shape \(7, d\)"),
    (lambda: sk.spmm(PATTERN, W.flatten().double(), X.T), TypeError, "b is torch.float32"),
    (lambda: sk.spmm(PATTERN, *[t.to("meta") for t in (W.flatten(), X.T)]), ValueError, "on meta"),
    (lambda: sk.sddmm(X, X, MASK), TypeError, "pattern must be a SparsityPattern, got Tensor"),
    (lambda: sk.sddmm(X, X, PATTERN), ValueError, r"a must have shape \(5, d\)"),
    (lambda: sk.sddmm(W, W, PATTERN), ValueError, "a has 7 columns and b 5 rows"),
    (lambda: sk.sddmm(W, W.T, PATTERN), ValueError, r"b must have shape \(d, 7\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[case[2] for case in CASES])
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
