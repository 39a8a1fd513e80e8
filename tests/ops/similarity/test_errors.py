"""Wrong arguments: the error names the argument, its shape and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparsekern as sk

X = torch.randn(8, 5)
MATRICES = [sk.hsic_matrix, sk.cka_matrix]
PAIRS = [sk.hsic, sk.cka]


@pytest.mark.parametrize("function", MATRICES)
def test_empty_lists(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="xs is empty"):
        function([])
    with pytest.raises(ValueError, match="ys is empty"):
        function([X], [])


def test_empty_groups() -> None:
    with pytest.raises(ValueError, match="groups is empty"):
        sk.cka_sum([])
    with pytest.raises(ValueError, match=r"groups\[1\] is empty"):
        sk.cka_sum([[X], []])


@pytest.mark.parametrize("function", MATRICES)
def test_a_tensor_instead_of_a_list(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="xs must be a list"):
        function(X)
    with pytest.raises(TypeError, match="ys must be a list"):
        function([X], X)
    with pytest.raises(TypeError, match="xs must be a list"):
        function(x for x in [X])


def test_wrong_nesting_of_groups() -> None:
    with pytest.raises(TypeError, match="groups must be a list of lists"):
        sk.cka_sum(X)
    with pytest.raises(TypeError, match=r"groups\[0\] must be a list"):
        sk.cka_sum([X, X])
    with pytest.raises(TypeError, match=r"groups\[0\]\[1\] must be a tensor.*list"):
        sk.cka_sum([[X, [X]]])


@pytest.mark.parametrize("function", PAIRS)
@pytest.mark.parametrize("wrong", [None, 3.0, [[1.0]], X.numpy()], ids=lambda w: type(w).__name__)
def test_something_else_than_a_tensor(function: Callable[..., Any], wrong: object) -> None:
    name = type(wrong).__name__
    with pytest.raises(TypeError, match=rf"x must be a tensor.*{name}"):
        function(wrong, X)
    with pytest.raises(TypeError, match=rf"y must be a tensor.*{name}"):
        function(X, wrong)
    with pytest.raises(TypeError, match=rf"xs\[1\] must be a tensor.*{name}"):
        sk.cka_matrix([X, wrong])
    with pytest.raises(TypeError, match=rf"x must be a tensor.*{name}"):
        sk.gram(wrong)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_unsupported_dtypes(dtype: torch.dtype) -> None:
    wrong = torch.ones(8, 5, dtype=dtype)
    with pytest.raises(TypeError, match=rf"y must be float32.*{dtype}"):
        sk.cka(X, wrong)
    with pytest.raises(TypeError, match=rf"ys\[0\] must be float32.*{dtype}"):
        sk.hsic_matrix([X], [wrong])
    with pytest.raises(TypeError, match=rf"x must be float32.*{dtype}"):
        sk.gram(wrong)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_too_few_samples_for_the_unbiased_estimator(n: int) -> None:
    x = torch.randn(n, 5, 2)
    shape = rf"\({n}, 5, 2\)"
    for name, call in (
        ("x", lambda: sk.hsic(x, x)),
        ("x", lambda: sk.cka(x, x)),
        (r"xs\[0\]", lambda: sk.cka_matrix([x])),
        (r"xs\[0\]", lambda: sk.hsic_matrix([x], [x])),
        (r"groups\[0\]\[0\]", lambda: sk.cka_sum([[x]])),
    ):
        with pytest.raises(ValueError, match=rf"{name} has {n} samples.*{shape}.*unbiased.*4"):
            call()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples_for_the_biased_estimator(n: int) -> None:
    x = torch.randn(n, 5)
    with pytest.raises(ValueError, match=rf"x has {n} samples.*\({n}, 5\).*biased.*2"):
        sk.cka(x, x, estimator="biased")
    with pytest.raises(ValueError, match=rf"groups\[0\]\[0\] has {n} samples.*biased.*2"):
        sk.cka_sum([[x]], estimator="biased", reduction="mean")


@pytest.mark.parametrize("n", [2, 3])
def test_few_samples_are_enough_for_the_biased_estimator(n: int) -> None:
    x = torch.randn(n, 5)
    assert sk.cka(x, x, estimator="biased").item() == pytest.approx(1, abs=1e-6)


def test_too_few_samples_for_gram() -> None:
    with pytest.raises(ValueError, match=r"x has 0 samples.*\(0, 5\)"):
        sk.gram(torch.randn(0, 5))
    with pytest.raises(ValueError, match=r"x has 2 samples.*\(2, 5\).*3"):
        sk.gram(torch.randn(2, 5), center="u")


def test_a_scalar_has_no_samples() -> None:
    with pytest.raises(ValueError, match=r"y must have shape \(n, \.\.\.\)"):
        sk.cka(X, torch.tensor(1.0))


def test_different_numbers_of_samples() -> None:
    other = torch.randn(9, 5)
    for name, call in (
        ("y has 9 .* x has 8", lambda: sk.cka(X, other)),
        (r"xs\[2\] has 9 .* xs\[0\] has 8", lambda: sk.hsic_matrix([X, X, other])),
        (r"ys\[0\] has 9 .* xs\[0\] has 8", lambda: sk.cka_matrix([X], [other])),
        (
            r"groups\[1\]\[0\] has 9 .* groups\[0\]\[0\] has 8",
            lambda: sk.cka_sum([[X], [other]]),
        ),
    ):
        with pytest.raises(ValueError, match=name):
            call()


def test_different_dtypes() -> None:
    other = X.double()
    for name, call in (
        ("y is torch.float64 and x is torch.float32", lambda: sk.hsic(X, other)),
        (r"xs\[1\] is torch.float64 and xs\[0\] is", lambda: sk.cka_matrix([X, other])),
        (r"ys\[0\] is torch.bfloat16 and xs\[0\]", lambda: sk.cka_matrix([X], [X.bfloat16()])),
        (r"groups\[0\]\[1\] is torch.float64", lambda: sk.cka_sum([[X, other]])),
    ):
        with pytest.raises(TypeError, match=name):
            call()


def test_different_devices() -> None:
    other = torch.empty(8, 5, device="meta")
    with pytest.raises(ValueError, match="y is on meta and x on cpu"):
        sk.cka(X, other)
    with pytest.raises(ValueError, match=r"xs\[1\] is on meta and xs\[0\] on cpu"):
        sk.hsic_matrix([X, other])


@pytest.mark.parametrize("function", PAIRS)
def test_unknown_estimator(function: Callable[..., Any]) -> None:
    for wrong in ("Unbiased", "debiased", None, 3):
        with pytest.raises(ValueError, match=f'estimator must be "unbiased" or.*{wrong}'):
            function(X, X, estimator=wrong)
    for unhashable in ([], {}):
        with pytest.raises(ValueError, match="estimator must be"):
            function(X, X, estimator=unhashable)
    with pytest.raises(ValueError, match="estimator"):
        sk.cka_sum([[X]], estimator="song")


def test_features_whose_products_leave_the_range_are_named() -> None:
    for call in (lambda: sk.cka(X, 1e30 * X), lambda: sk.hsic(X, 1e30 * X)):
        with pytest.raises(
            ValueError, match=r"range of torch.float32: .* up to .*e\+30 in y; scale"
        ):
            call()


def test_unknown_kernel() -> None:
    for call in (
        lambda k: sk.cka(X, X, kernel=k),
        lambda k: sk.hsic_matrix([X], kernel=k),
        lambda k: sk.cka_sum([[X]], kernel=k),
        lambda k: sk.gram(X, k),
    ):
        with pytest.raises(ValueError, match=r"kernel must be one of.*'linear'.*'gauss'"):
            call("gauss")
        with pytest.raises(TypeError, match=r"kernel must be a name.*type"):
            call(sk.RBF)
        with pytest.raises(TypeError, match=r"kernel must be a name.*NoneType"):
            call(None)


def test_unknown_center_and_reduction() -> None:
    for wrong in ("U", "single", True):
        with pytest.raises(ValueError, match=f"center must be None.*{wrong}"):
            sk.gram(X, center=wrong)
    for wrong in ("none", None):
        with pytest.raises(ValueError, match=f"reduction must be.*{wrong}"):
            sk.cka_sum([[X]], reduction=wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sk.RBF(fraction=0.0), "RBF: fraction .* 0.0"),
        (lambda: sk.RBF(fraction=float("nan")), "RBF: fraction"),
        (lambda: sk.RBF(bandwidth=-1.0), "RBF: bandwidth .* -1.0"),
        (lambda: sk.RBF(bandwidth=float("inf")), "RBF: bandwidth"),
        (lambda: sk.RBF(fraction="wide"), "RBF: fraction .* 'wide'"),
        (lambda: sk.RBF(bandwidth=True), "RBF: bandwidth .* True"),
        (lambda: sk.Polynomial(degree=0), "Polynomial: degree .* 0"),
        (lambda: sk.Polynomial(degree=1.5), "Polynomial: degree .* 1.5"),
        (lambda: sk.Polynomial(degree=True), "Polynomial: degree .* True"),
        (lambda: sk.Polynomial(c=-0.1), "Polynomial: c .* -0.1"),
        (lambda: sk.Polynomial(c=float("nan")), "Polynomial: c .* nan"),
        (lambda: sk.Polynomial(c=[1.0]), r"Polynomial: c .* \[1.0\]"),
    ],
)
def test_kernel_parameters(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_failed_call_leaves_the_back_end_as_it_was(backend: str) -> None:
    from sparsekern import dispatch

    with pytest.raises(ValueError, match="empty"):
        sk.cka_matrix([])
    assert dispatch.requested() == backend
