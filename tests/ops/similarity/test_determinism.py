"""The same call gives the same bits; the number of threads changes rounding at most."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle
from .oracle import ESTIMATORS, KERNELS

# CKA-SR's eight samples; both forms of the linear kernel; more than one tile of the Gram matrix.
CASES = [(8, (4099, 17)), (160, (4, 6)), (130, (30, 150))]
# The kernels differ in what is done to single entries of the Gram matrix: two of them reduce
# over it in ways of their own (the median, the row norms); the others are covered by "linear".
REDUCING = {name: KERNELS[name] for name in ("linear", "rbf-median", "cosine")}


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def everything(xs: list[Tensor], kernel: sk.Linear) -> list[Tensor]:
    """Values and gradients of the operators that differ in what they reduce over."""
    results = []
    for call in (
        lambda a: sk.cka_matrix(a, kernel=kernel),
        lambda a: sk.hsic_matrix(a[:1], a[1:], kernel=kernel, estimator="biased"),
        lambda a: sk.cka_sum([a], kernel=kernel),
        lambda a: sk.gram(a[0], kernel, center="u"),
    ):
        inputs = oracle.leaves(xs)
        value = call(inputs)
        weights = torch.linspace(-1, 2, value.numel()).square().view_as(value)
        (value * weights).sum().backward()
        results += [value.detach(), *(x.grad for x in inputs if x.grad is not None)]
    return results


@pytest.mark.parametrize(("n", "widths"), CASES, ids=str)
@pytest.mark.parametrize("kernel", REDUCING.values(), ids=REDUCING)
def test_bits_and_threads(n: int, widths: tuple[int, ...], kernel: sk.Linear) -> None:
    xs = [x / x.shape[1] ** 0.5 for x in oracle.layers(n, widths)]
    alone = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        first = everything(xs, kernel)
        alone = alone or first
        # Other addresses, other alignment.
        moved = [torch.cat([x.new_zeros(3), x.flatten()])[3:].view_as(x) for x in xs]
        for again in (everything(xs, kernel), everything(moved, kernel)):
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        for a, b in zip(alone, first, strict=True):
            assert oracle.relative_norm([b], [a]) <= 2e-5


@pytest.mark.parametrize("n", [4, 8, 33])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_matrices_are_symmetric_to_the_bit(n: int, kernel: sk.Linear, estimator: str) -> None:
    for dtype in (torch.float32, torch.float64):
        for count in (5, 12):
            xs = [x / x.shape[1] ** 0.5 for x in oracle.layers(n, (5, 7, 90) * 4, dtype)[:count]]
            for function in (sk.hsic_matrix, sk.cka_matrix):
                matrix = function(xs, kernel=kernel, estimator=estimator)
                assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_poison_changes_nothing(kernel: sk.Linear) -> None:
    # Fresh memory holds NaN in every other test of this folder; here it holds what it holds.
    xs = [x / x.shape[1] ** 0.5 for x in oracle.layers(9, (5, 70))]
    poisoned = everything(xs, kernel)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(False)
    plain = everything(xs, kernel)
    assert all(torch.equal(a, b) for a, b in zip(poisoned, plain, strict=True))


def test_grad_mode_changes_no_bit() -> None:
    for n, widths in CASES:
        xs = oracle.layers(n, widths)
        for call in (sk.cka_matrix, lambda a: sk.cka_sum([a])):
            assert torch.equal(call(xs), call(oracle.leaves(xs)).detach())


def test_calls_from_several_threads_at_once(backend: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sets = [oracle.layers(8 + i % 3, (200, 30 + i)) for i in range(12)]

    def call(xs: list[Tensor]) -> list[Tensor]:
        with sk.backend(backend):
            inputs = oracle.leaves(xs)
            value = sk.cka_sum([inputs])
            value.backward()
            return [value.detach(), *(x.grad for x in inputs)]

    torch.set_num_threads(1)
    expected = [call(xs) for xs in sets]
    with ThreadPoolExecutor(4) as pool:
        for alone, together in zip(expected, pool.map(call, sets), strict=True):
            # A new thread asks for the number of threads of its own, so bits may differ.
            assert oracle.relative_norm(together, alone) <= 1e-5
