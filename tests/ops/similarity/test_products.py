"""Products of bfloat16 operands: on the machine's own instructions, and on AMX emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern import dispatch, native

from . import oracle

pytestmark = pytest.mark.skipif(
    dispatch.missing_reason("cpu") != "", reason="these are products of the compiled core"
)
# Below, at and beyond one panel of 32, one packed block, and what one thread does alone.
SHAPES = ((17, (40, 3)), (33, (300, 31, 1000)), (64, (64, 257)), (600, (90, 40)))
# With the median bandwidth a rounding may change which pair of samples the gradient flows through.
KERNELS = (sk.Linear(), sk.RBF(bandwidth=20.0), sk.Polynomial(3, 0.5), sk.Cosine())


@pytest.fixture(autouse=True)
def backend() -> Iterator[str]:
    with sk.backend("cpu"):
        yield "cpu"


@pytest.fixture(params=["avx512_bf16", "amx_emulated", "amx"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    core = native.cpu()
    before = core.isa()
    try:
        core.set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    core.set_isa(before)


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def difference(xs: list[Tensor], kernel: sk.Linear, native_xs: list[Tensor]) -> tuple[float, float]:
    """Errors of the matrix (largest) and of a gradient (relative norm) against float64."""
    n = len(xs)
    weights = torch.arange(n * n, dtype=torch.float32).view(n, n).cos()
    results = []
    for features, name in ((xs, "cpu"), ([x.double() for x in native_xs], "reference")):
        leaves = oracle.leaves(features)
        with sk.backend(name):
            matrix = sk.cka_matrix(leaves, kernel=kernel)
            (matrix * weights).sum().backward()
        results.append((matrix.detach().double(), [x.grad.double() for x in leaves]))
    (matrix, gradients), (expected, expected_gradients) = results
    return (matrix - expected).abs().max().item(), oracle.relative_norm(
        gradients, expected_gradients
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "widths"), SHAPES)
def test_bfloat16_features(isa: str, n: int, widths: tuple[int, ...], kernel: sk.Linear) -> None:
    xs = oracle.layers(n, widths, torch.bfloat16)
    error, gradient_error = difference(xs, kernel, xs)
    # Each centred feature carries half a unit of bfloat16, 2^-9; entries of a Gram matrix average.
    assert error <= 4e-3
    assert gradient_error <= 2e-2


def test_bfloat16_features_with_an_offset(isa: str) -> None:
    # Means are taken off in float32, before anything is rounded.
    xs = [(x + 100).bfloat16() for x in oracle.layers(64, (500, 300))]
    assert difference(xs, sk.Linear(), xs)[0] <= 2e-3


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize(("n", "widths"), SHAPES)
def test_high_precision(isa: str, n: int, widths: tuple[int, ...], offset: float) -> None:
    torch.set_float32_matmul_precision("high")
    xs = [x + offset for x in oracle.layers(n, widths)]
    error, gradient_error = difference(xs, sk.Linear(), xs)
    # 16 bits of each element: 2^-17 of it at most is lost, and averages out.
    assert error <= 2e-6
    assert gradient_error <= 3e-5


@pytest.mark.usefixtures("precision")
def test_high_precision_is_near_plain_float32(isa: str) -> None:
    torch.set_float32_matmul_precision("high")
    xs = oracle.layers(256, (4096, 2048, 1024))
    expected = oracle.eager_cka_matrix([x.double() for x in xs], None, sk.Linear(), "unbiased")
    plain = oracle.eager_cka_matrix(xs, None, sk.Linear(), "unbiased")
    usual = (plain - expected).abs().max().item()
    error = (sk.cka_matrix(xs) - expected).abs().max().item()
    assert error <= 3 * max(usual, 2**-24)


@pytest.mark.usefixtures("precision")
def test_medium_precision_is_bfloat16(isa: str) -> None:
    xs = oracle.layers(100, (300, 200))
    exact = sk.cka_matrix(xs)
    torch.set_float32_matmul_precision("medium")
    rounded = sk.cka_matrix(xs)
    assert 0 < (rounded - exact).abs().max() <= 4e-3


@pytest.mark.usefixtures("precision")
def test_float64_keeps_its_precision(isa: str) -> None:
    torch.set_float32_matmul_precision("medium")
    xs = oracle.layers(100, (300, 200), torch.float64)
    assert difference(xs, sk.Linear(), xs)[0] <= 1e-12


def test_degenerate_layers_stay_zero(isa: str) -> None:
    x = torch.randn(40, 90).bfloat16()
    constant = torch.full((40, 7), 3.14159).bfloat16()
    matrix = sk.cka_matrix([x, constant])
    assert matrix[0, 1] == 0
    assert matrix[1, 1] == 0
    assert matrix[0, 0] == pytest.approx(1, abs=1e-6)


def test_nothing_is_left_of_an_unknown_name() -> None:
    before = native.cpu().isa()
    with pytest.raises(ValueError, match="no instruction set 'amx_imagined'"):
        native.cpu().set_isa("amx_imagined")
    assert native.cpu().isa() == before
