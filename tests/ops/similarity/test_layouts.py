"""Memory layouts: strides, offsets, unaligned starts; inputs stay as they are, outputs are new."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle
from .oracle import ESTIMATORS


def transposed(x: Tensor) -> Tensor:
    return x.T.contiguous().T


def strided_rows(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=1)[:, 0]


def strided_columns(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=2)[..., 0]


def window(x: Tensor) -> Tensor:
    """Rows of a wider matrix, from an odd column on: neither aligned nor adjacent."""
    wide = torch.full((x.shape[0] + 2, x.shape[1] + 5), float("nan"), dtype=x.dtype)
    wide[1:-1, 3:-2] = x
    return wide[1:-1, 3:-2]


def unaligned(x: Tensor) -> Tensor:
    """Contiguous, starting one element after an aligned address."""
    return torch.cat([torch.full((1,), float("nan"), dtype=x.dtype), x.flatten()])[1:].view_as(x)


def flipped(x: Tensor) -> Tensor:
    return x.flip(0).contiguous().flip(0)


LAYOUTS = [transposed, strided_rows, strided_columns, window, unaligned, flipped]
OPERATORS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "hsic": lambda xs: sk.hsic(xs[0], xs[1]),
    "cka-rbf": lambda xs: sk.cka(xs[0], xs[1], kernel="rbf"),
    "cka-cosine-biased": lambda xs: sk.cka(xs[0], xs[1], kernel="cosine", estimator="biased"),
    "hsic_matrix": lambda xs: sk.hsic_matrix(xs, kernel="polynomial").div(1e4).tanh(),
    "cka_matrix": lambda xs: sk.cka_matrix(xs[:1], xs[1:]),
    "cka_sum": lambda xs: sk.cka_sum([xs]),
    "gram": lambda xs: sk.gram(xs[0]),
    "gram-u": lambda xs: sk.gram(xs[0], "rbf", center="u"),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("call", OPERATORS.values(), ids=OPERATORS)
def test_every_layout(call: Callable[[list[Tensor]], Tensor], layout: Callable) -> None:
    for n, widths in ((5, (19, 8)), (8, (300, 33)), (40, (3, 7)), (33, (65, 200))):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            xs = [x / 4 for x in oracle.layers(n, widths, dtype)]
            views = [layout(x) for x in xs]
            assert all(torch.equal(view, x) for view, x in zip(views, xs, strict=True))
            plain, strided = oracle.leaves(xs), [v.detach().requires_grad_() for v in views]
            expected, actual = call(plain), call(strided)
            loose = 1e-10 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(actual, expected, rtol=loose, atol=loose)
            upstream = torch.randn_like(expected)
            expected.backward(upstream)
            actual.backward(upstream)
            worst = max(loose, 2 * torch.finfo(dtype).eps)
            for p, s in zip(plain, strided, strict=True):
                if p.grad is None:
                    assert s.grad is None
                else:
                    assert s.grad.shape == s.shape
                    assert s.grad.dtype == s.dtype
                    assert oracle.relative_norm([s.grad], [p.grad]) <= worst


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf", "cosine"])
def test_images_and_sequences_are_flattened(kernel: str, estimator: str) -> None:
    options = {"kernel": kernel, "estimator": estimator}
    images, sequences = torch.randn(8, 6, 5, 3), torch.randn(8, 7, 4)
    vector = torch.randn(8)
    xs = oracle.leaves([images, images.contiguous(memory_format=torch.channels_last)])
    flat = oracle.leaves([images.reshape(8, 90)])
    rest = [sequences, vector]
    expected = sk.cka_matrix([*flat, sequences.reshape(8, 28), vector.reshape(8, 1)], **options)
    expected[0].sum().backward()
    for x in xs:
        actual = sk.cka_matrix([x, *rest], **options)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        actual[0].sum().backward()
        assert x.grad.shape == x.shape
        assert oracle.relative_norm([x.grad.reshape(8, 90)], [flat[0].grad]) <= 2e-5


def test_expanded_features() -> None:
    column = torch.randn(8, 1, dtype=torch.float64, requires_grad=True)
    other = torch.randn(8, 5, dtype=torch.float64)
    value = sk.cka(column.expand(8, 40), other)
    value.backward()
    copy = column.detach().repeat(1, 40).requires_grad_()
    expected = sk.cka(copy, other)
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(column.grad[:, 0], copy.grad.sum(dim=1), rtol=1e-9, atol=1e-12)
    row = torch.randn(1, 40, dtype=torch.float64).expand(8, 40)
    assert sk.cka(row, other).item() == 0
    one = torch.ones(1, 1, dtype=torch.float64).expand(8, 40)
    assert sk.cka(one, other, estimator="biased").item() == 0


@pytest.mark.parametrize("call", OPERATORS.values(), ids=OPERATORS)
def test_upstream_gradients_of_any_layout(call: Callable[[list[Tensor]], Tensor]) -> None:
    xs = oracle.layers(9, (12, 5), torch.float64)
    shape = call(xs).shape
    axes = list(range(len(shape)))[::-1]
    for upstream in (
        torch.ones((), dtype=torch.float64).expand(shape),
        torch.randn(shape[::-1], dtype=torch.float64).permute(axes),
    ):
        results = []
        for g in (upstream, upstream.contiguous()):
            inputs = oracle.leaves(xs)
            call(inputs).backward(g)
            results.append([x.grad for x in inputs if x.grad is not None])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def storage(x: Tensor) -> tuple[int, int]:
    start = x.untyped_storage().data_ptr()
    return start, start + x.untyped_storage().nbytes()


@pytest.mark.parametrize("call", OPERATORS.values(), ids=OPERATORS)
def test_inputs_stay_and_outputs_are_new(call: Callable[[list[Tensor]], Tensor]) -> None:
    for n, widths in ((8, (30, 12)), (50, (3, 4))):
        for layout in (torch.clone, transposed):
            xs = [layout(x).requires_grad_() for x in oracle.layers(n, widths)]
            before = [x.detach().clone() for x in xs]
            result = call(xs)
            upstream = torch.randn_like(result)
            kept = upstream.clone()
            used = xs[: 1 if result.shape == (n, n) else 2]
            found = torch.autograd.grad(result, used, upstream)
            assert all(torch.equal(x, b) for x, b in zip(xs, before, strict=True))
            assert torch.equal(upstream, kept)
            blocks = [storage(t) for t in (*xs, upstream, result, *found)]
            blocks.sort()
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(blocks))


def test_results_of_two_calls_do_not_share_memory() -> None:
    xs = oracle.layers(8, (30, 12))
    first = sk.cka_matrix(xs)
    kept = first.clone()
    sk.cka_matrix(xs[::-1])
    sk.hsic_matrix([x * 3 for x in xs])
    assert torch.equal(first, kept)


def test_parameters_and_subclasses() -> None:
    x, y = oracle.layers(8, (5, 9))
    expected = sk.cka(x, y)
    parameter = torch.nn.Parameter(x)
    value = sk.cka(parameter, y)
    value.backward()
    assert torch.equal(value, expected)
    assert parameter.grad is not None

    class Tagged(torch.Tensor):
        pass

    torch.testing.assert_close(torch.as_tensor(sk.cka(x.as_subclass(Tagged), y)), expected)


def test_tuples_are_lists_too() -> None:
    xs = oracle.layers(8, (5, 9))
    assert torch.equal(sk.cka_matrix(tuple(xs), tuple(xs)), sk.cka_matrix(xs, xs))
    assert torch.equal(sk.cka_sum((tuple(xs),)), sk.cka_sum([xs]))
