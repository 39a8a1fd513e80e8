"""Gradients: against finite differences, against the definition, and their plumbing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle
from .oracle import ESTIMATORS, KERNELS

# n: the least, odd, the eight samples of CKA-SR, and more than two registers; d on both sides of
# n, for either form of the linear kernel. Small in all, for finite differences cost n d calls.
SHAPES = [(4, (3, 6)), (5, (2, 7)), (8, (2, 11)), (33, (2, 3))]
matrix_of = {
    sk.hsic_matrix: oracle.eager_hsic_matrix,
    sk.cka_matrix: oracle.eager_cka_matrix,
}


def gradcheck(function: Callable[..., Tensor], xs: list[Tensor]) -> None:
    # Fast mode projects the Jacobian at random; the full one is kept for the smallest.
    fast = sum(x.numel() for x in xs) > 40
    assert torch.autograd.gradcheck(
        function, oracle.leaves(xs), eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=fast
    )


@pytest.mark.parametrize(("n", "widths"), SHAPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_finite_differences(
    n: int, widths: tuple[int, ...], kernel: sk.Linear, estimator: str
) -> None:
    options = {"kernel": kernel, "estimator": estimator}
    xs = [x / x.shape[1] ** 0.5 for x in oracle.layers(n, (*widths, 4), torch.float64)]
    gradcheck(lambda x, y: sk.hsic(x, y, **options), xs[:2])
    gradcheck(lambda x, y: sk.cka(x, y, **options), xs[:2])
    gradcheck(lambda *a: sk.hsic_matrix(list(a), **options), xs)
    gradcheck(lambda *a: sk.cka_matrix(list(a), **options), xs)
    gradcheck(lambda *a: sk.hsic_matrix(list(a[:1]), list(a[1:]), **options), xs)
    gradcheck(lambda *a: sk.cka_matrix(list(a[:2]), list(a[2:]), **options), xs)
    gradcheck(lambda *a: sk.cka_sum([list(a[:2]), list(a[2:])], **options), xs)
    gradcheck(lambda *a: sk.cka_sum([list(a[:1]), list(a[1:])], reduction="mean", **options), xs)


@pytest.mark.parametrize("n", [3, 4, 5, 8, 33])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("center", [None, "double", "u"])
def test_finite_differences_of_gram(n: int, kernel: sk.Linear, center: str | None) -> None:
    for x in oracle.layers(n, (2, 7), torch.float64):
        gradcheck(lambda a: sk.gram(a, kernel, center=center), [x / x.shape[1]])


def gradients(function: Callable[[list[Tensor]], Tensor], xs: list[Tensor]) -> list[Tensor]:
    inputs = oracle.leaves(xs)
    return list(torch.autograd.grad(function(inputs), inputs))


def check_against_definition(
    actual: Callable[[list[Tensor]], Tensor],
    eager: Callable[[list[Tensor]], Tensor],
    xs: list[Tensor],
    least: float,
) -> None:
    """Within three times the error of plain PyTorch at the same dtype, and of the input dtype."""
    expected = gradients(eager, [x.double() for x in xs])
    found, usual = gradients(actual, xs), gradients(eager, xs)
    assert [g.dtype for g in found] == [x.dtype for x in xs]
    assert [g.shape for g in found] == [x.shape for x in xs]
    error = oracle.relative_norm(found, expected)
    bound = 3 * oracle.relative_norm(usual, expected) + least
    assert error <= bound, f"{error:.2e} against a bound of {bound:.2e}"


@pytest.mark.parametrize("n", [4, 8, 33, 129])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_random_upstream_gradients_at_float32(n: int, kernel: sk.Linear, estimator: str) -> None:
    for widths in ((3, 17), (64, 300, 2)):
        xs = [x / x.shape[1] ** 0.5 for x in oracle.layers(n, widths)]
        for operator, eager in matrix_of.items():
            for ys in (None, [x / x.shape[1] ** 0.5 for x in oracle.layers(n, (5, 90))]):
                rows, columns = len(xs), len(xs if ys is None else ys)
                upstream = torch.randn(rows, columns, dtype=torch.float64)

                def weighted(
                    a: list[Tensor],
                    function: Callable[..., Tensor],
                    upstream: Tensor = upstream,
                    rows: int = rows,
                    square: bool = ys is None,
                ) -> Tensor:
                    second = None if square else a[rows:]
                    return (function(a[:rows], second) * upstream).sum()

                check_against_definition(
                    lambda a, w=weighted, f=operator: w(
                        a, lambda p, q: f(p, q, kernel=kernel, estimator=estimator)
                    ),
                    lambda a, w=weighted, f=eager: w(a, lambda p, q: f(p, q, kernel, estimator)),
                    xs + (ys or []),
                    2e-6,
                )


@pytest.mark.parametrize("dtype", [torch.float32, *oracle.LOW_PRECISION], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("n", [4, 8, 33])
def test_cka_sum_is_the_definition(
    dtype: torch.dtype, estimator: str, reduction: str, n: int
) -> None:
    least = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for kernel in (sk.Linear(), sk.RBF()):
        for widths in ((40, 40, 40), (4099, 17, 256)):
            check_against_definition(
                lambda a, k=kernel: sk.cka_sum(
                    [a[:3], a[3:]], kernel=k, estimator=estimator, reduction=reduction
                ),
                lambda a, k=kernel: oracle.eager_cka_sum([a[:3], a[3:]], k, estimator, reduction),
                [x / x.shape[1] ** 0.5 for x in oracle.layers(n, (*widths, 64, 90), dtype)],
                least,
            )


@pytest.mark.parametrize("offset", [10, 1000])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_under_an_offset(offset: float, estimator: str) -> None:
    xs = [x + offset for x in oracle.layers(8, (256, 64))]
    expected = gradients(
        lambda a: oracle.eager_cka_matrix(a, None, sk.Linear(), estimator).sum(),
        [x.double() for x in xs],
    )
    found = gradients(lambda a: sk.cka_sum([a], estimator=estimator), xs)
    assert oracle.relative_norm(found, expected) <= 2e-5


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF(), sk.Cosine()], ids=repr)
def test_only_some_inputs_require_grad(kernel: sk.Linear) -> None:
    for n, widths in ((8, (5, 30, 4, 9)), (33, (5, 30, 4, 90))):
        xs = oracle.layers(n, widths, torch.float64)
        for calls in (
            lambda a: sk.cka_matrix(a, kernel=kernel).square().sum(),
            lambda a: sk.hsic_matrix(a[:2], a[2:], kernel=kernel).square().sum(),
            lambda a: sk.cka_sum([a[:2], a[2:]], kernel=kernel, reduction="mean"),
        ):
            full = gradients(calls, xs)
            for live in ([0], [3], [1, 2], [0, 1]):
                mixed = [x.clone().requires_grad_(i in live) for i, x in enumerate(xs)]
                calls(mixed).backward()
                for i, x in enumerate(mixed):
                    if i in live:
                        torch.testing.assert_close(x.grad, full[i], rtol=1e-10, atol=1e-13)
                    else:
                        assert x.grad is None


def test_result_requires_grad_only_where_an_input_does() -> None:
    xs = oracle.layers(8, (5, 30))
    for call in (sk.cka_matrix, sk.hsic_matrix, lambda a: sk.cka_sum([a]), lambda a: sk.gram(a[0])):
        assert not call(xs).requires_grad
        assert call(oracle.leaves(xs)).requires_grad
        with torch.no_grad():
            assert not call(oracle.leaves(xs)).requires_grad
        with torch.inference_mode():
            assert not call(oracle.leaves(xs)).requires_grad


def test_the_same_tensor_in_several_places() -> None:
    x, y = oracle.layers(8, (6, 9), torch.float64)
    z = x.clone().requires_grad_()
    sk.cka_matrix([z, y, z], [z, y]).square().sum().backward()
    w = x.clone().requires_grad_()
    oracle.eager_cka_matrix([w, y, w], [w, y], sk.Linear(), "unbiased").square().sum().backward()
    torch.testing.assert_close(z.grad, w.grad, rtol=1e-9, atol=1e-12)


def test_gradients_accumulate_and_the_graph_is_freed() -> None:
    x, y = oracle.leaves(oracle.layers(8, (6, 9)))
    value = sk.cka(x, y)
    value.backward(retain_graph=True)
    once = x.grad.clone()
    value.backward()
    torch.testing.assert_close(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_a_feature_changed_after_forward_gives_no_wrong_gradient() -> None:
    x, y = oracle.leaves(oracle.layers(8, (6, 9)))
    sk.cka(x, y).backward()
    expected, x.grad = x.grad, None
    activation = x * 1
    value = sk.cka(activation, y)
    activation.mul_(activation.detach())
    try:
        value.backward()
    except RuntimeError as error:
        refusal = str(error)
        assert "modified by an inplace operation" in refusal
    else:
        torch.testing.assert_close(x.grad, expected)


def test_part_of_a_matrix() -> None:
    xs = oracle.leaves(oracle.layers(8, (6, 9, 12), torch.float64))
    sk.cka_matrix(xs)[0, 1].backward()
    ys = oracle.leaves(xs)
    sk.cka(ys[0], ys[1]).backward()
    torch.testing.assert_close(xs[0].grad, ys[0].grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(xs[1].grad, ys[1].grad, rtol=1e-10, atol=1e-13)
    assert torch.equal(xs[2].grad, torch.zeros_like(xs[2]))


@pytest.mark.parametrize(
    "call",
    [
        lambda a: sk.cka(a[0], a[1]),
        lambda a: sk.hsic(a[0], a[1], estimator="biased"),
        lambda a: sk.cka_matrix(a).square().sum(),
        lambda a: sk.cka_sum([a]),
        lambda a: sk.gram(a[0], center="u").square().sum(),
    ],
    ids=["cka", "hsic", "cka_matrix", "cka_sum", "gram"],
)
def test_double_backward_is_right_or_refused(
    call: Callable[[list[Tensor]], Tensor], backend: str
) -> None:
    xs = oracle.layers(5, (3, 4), torch.float64)

    def scalar(*a: Tensor) -> Tensor:
        return call(list(a))

    def second_order() -> bool:
        inputs = oracle.leaves(xs)
        used = inputs[:1]
        (first,) = torch.autograd.grad(scalar(*inputs), used, create_graph=True)
        first.square().sum().backward()
        return torch.autograd.gradgradcheck(scalar, oracle.leaves(xs), atol=1e-5, rtol=1e-4)

    if backend == "reference":
        assert second_order()
        return
    try:
        assert second_order()
    except (RuntimeError, NotImplementedError) as error:
        # The refusal must come from this package or autograd's once_differentiable, and say so.
        words = str(error).lower()
        assert "differentia" in words or "double backward" in words, words
