"""The Triton kernels against float64: on a GPU where there is one, else in Triton's interpreter.

Interpreted, a call takes a second or so: every kernel, form and edge once, in small shapes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.similarity.triton import plan
from sparsekern.ops.tiled import device
from sparsekern.ops.tiled.configurations import Configuration, overriding

from .. import interpreter
from . import oracle
from .oracle import ESTIMATORS, KERNELS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NONLINEAR = {name: kernel for name, kernel in KERNELS.items() if name != "linear"}
# Samples: the least; the streamed form's own sizes and the first that pad them (8, 9); the least
# tile (16) and the first that pads it; and two tiles, of which one is nearly empty. Features: one,
# less than a block, a block and one, and several programs of a layer.
STRADDLING = (4, 8, 9, 17, 33)
WIDTHS = (1, 17, 129, 300)


@pytest.fixture(autouse=True)
def backend() -> Iterator[str]:
    with sk.backend("triton"), interpreter.patched_once():
        yield "triton"


# Samples that take a form with several tiles where these are of 16 samples: the second tile nearly
# empty, and three of them, of which the last is.
SEVERAL_TILES = {"gram_columns": 18, "gram_plain": 18, "gram_apart": 21, "gram_tiles": 37}


@pytest.fixture(params=SEVERAL_TILES)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Has few samples take the forms with several tiles; of 128 samples they would take minutes."""
    monkeypatch.setattr(plan, "_LARGE_ROWS", 32)
    monkeypatch.setattr(plan, "_COLUMN_ROWS_DEFAULT", 32)
    monkeypatch.setattr(plan, "_TOGETHER", {"ieee": 16} if request.param == "gram_apart" else {})
    here = {device.device_class(torch.device(DEVICE))} if request.param == "gram_plain" else set()
    monkeypatch.setattr(plan, "_ASYNCHRONOUS", here)
    monkeypatch.setattr(plan, "_PLAIN_ROWS", 32)
    monkeypatch.setattr(plan, "_AS_THEY_ARE", {("ieee", 4)})
    monkeypatch.setattr(plan, "_TILE_ROWS_DEFAULT", 16)
    monkeypatch.setattr(plan, "TILE_GROUP", 2)
    entry = Configuration(16, 4, 2)
    keys = (("gram_apart", "ieee", 32), ("gram_plain", "ieee", 32), ("gram_tiles", "ieee", 16))
    with overriding(dict.fromkeys(keys, entry)):
        yield request.param


def on_device(xs: list[Tensor]) -> list[Tensor]:
    return [x.to(DEVICE) for x in xs]


def results(
    xs: list[Tensor], kernel: sk.Linear, estimator: str, *, matrix_only: bool = False
) -> list[Tensor]:
    """A matrix, a rectangle of HSIC, a sum over groups, and the gradient of a mix of them."""
    inputs = [x.detach().requires_grad_() for x in xs]
    options = {"kernel": kernel, "estimator": estimator}
    matrix = sk.cka_matrix(inputs, **options)
    found = [matrix]
    mix = torch.arange(matrix.numel(), device=matrix.device).reshape(matrix.shape).cos()
    loss = (matrix * mix).sum()
    if not matrix_only:
        rectangle = sk.hsic_matrix(inputs[:1], inputs[1:], **options)
        total = sk.cka_sum([inputs[:2], inputs[2:]], **options)
        found += [rectangle, total]
        loss = loss + total + rectangle.sum() / rectangle.detach().abs().sum()
    found += torch.autograd.grad(loss, inputs)
    return [x.detach().cpu() for x in found]


def check(
    xs: list[Tensor],
    kernel: sk.Linear,
    estimator: str,
    tolerance: float,
    *,
    matrix_only: bool = False,
) -> None:
    actual = results(on_device(xs), kernel, estimator, matrix_only=matrix_only)
    with sk.backend("reference"):
        wanted = results([x.double() for x in xs], kernel, estimator, matrix_only=matrix_only)
    values = len(actual) - len(xs)
    for a, w in zip(actual[:values], wanted[:values], strict=True):
        assert oracle.relative_norm([a], [w]) <= tolerance
    assert all(a.dtype == x.dtype for a, x in zip(actual[values:], xs, strict=True))
    assert oracle.relative_norm(actual[values:], wanted[values:]) <= 20 * tolerance


@pytest.mark.parametrize("n", STRADDLING)
def test_linear_at_edges_of_tiles(n: int) -> None:
    # What is asked for of the inner products does not depend on the tiles.
    whole = n in (8, 17)
    check(oracle.layers(n, WIDTHS), sk.Linear(), ESTIMATORS[n % 2], 2e-6, matrix_only=not whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("n", [8, 20])
def test_linear_at_other_dtypes(n: int, dtype: torch.dtype) -> None:
    # The features are rounded before either side sees them; a gradient is rounded once more.
    tolerance = {torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    whole = dtype == torch.float64 and n == 8
    xs = oracle.layers(n, WIDTHS, dtype)
    check(xs, sk.Linear(), "unbiased", tolerance, matrix_only=not whole)


@pytest.mark.parametrize("kernel", NONLINEAR.values(), ids=NONLINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels(kernel: sk.Linear, dtype: torch.dtype) -> None:
    n, estimator = (9, "unbiased") if dtype == torch.float32 else (5, "biased")
    xs = [(x / x.shape[1] ** 0.5).to(dtype) for x in oracle.layers(n, (3, 17, 40), torch.float64)]
    whole = dtype == torch.float32
    check(xs, kernel, estimator, 1e-5 if whole else 1e-11, matrix_only=not whole)


def form_of(xs: list[Tensor]) -> plan.GramPlan:
    from sparsekern.ops.similarity.triton import launches

    return launches.Call(xs, (plan.LINEAR, 0.0, 0.0, plan.U_CENTRING, True)).plan


@pytest.mark.parametrize("processors", [1, 24], ids=["whole", "split"])
def test_several_tiles(small_tiles: str, processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "processors", lambda _: processors)
    xs = oracle.layers(SEVERAL_TILES[small_tiles], (3, 70, 5))
    how = form_of(xs)
    assert (how.form, how.rows, max(how.splits) > 1) == (small_tiles, 16, processors > 1)
    check(xs, sk.Linear(), "unbiased", 2e-6, matrix_only=True)


@pytest.mark.parametrize("n", [33, 150, 270])
def test_wide_tiles_make_every_entry_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsekern.ops.similarity.triton import calls, launches

    monkeypatch.setattr(plan, "_ASYNCHRONOUS", {device.device_class(torch.device(DEVICE))})
    monkeypatch.setattr(plan, "_AS_THEY_ARE", {("ieee", 4)})
    monkeypatch.setattr(plan, "_COLUMN_ROWS_DEFAULT", 32)
    monkeypatch.setattr(plan, "_TILE_ROWS_DEFAULT", 16)
    monkeypatch.setattr(device, "processors", lambda _: 1)
    x = oracle.layers(n, (21,))[0].to(DEVICE)
    spec = (plan.LINEAR, 0.0, 0.0, plan.NO_CENTRING, False)
    keys = (("gram_mirrored", "ieee", 16), ("gram_tiles", "ieee", 16))
    with overriding(dict.fromkeys(keys, Configuration(16, 4, 2))):
        assert launches.Call([x], spec).plan.form == plan.MIRRORED
        k = calls.gram(x, *spec)[0]
    assert torch.equal(k, k.T)
    assert oracle.relative_norm([k], [x.double() @ x.double().T]) <= 1e-6


@pytest.mark.parametrize("small_tiles", ["gram_plain"], indirect=True)
def test_features_are_centred_where_they_stand_far_from_zero(small_tiles: str) -> None:
    from sparsekern.ops.similarity.triton import calls
    from sparsekern.ops.similarity.triton.state import State

    near, far = oracle.layers(18, (40, 33), torch.float64)
    far += 1000 * far.std() * torch.randn(33, dtype=torch.float64).sign()
    xs = [near.float(), far.float(), torch.full((18, 5), 0.1)]
    with sk.backend("reference"):
        wanted = sk.cka_matrix([x.double() for x in xs[:2]])
    layers = on_device(xs)
    spec = (plan.LINEAR, 0.0, 0.0, plan.U_CENTRING, True)
    found, memory = calls.compare(layers, 0, 1, *spec, True)
    assert (found[:2, :2].cpu() - wanted).abs().max() <= 1e-5
    assert not found[2].any()
    means = State.view(memory, layers[0], (40, 33, 5)).means.cpu()
    assert not means[:40].any()
    torch.testing.assert_close(means[40:], torch.cat([x.mean(0) for x in xs[1:]]))


def test_other_kernels_by_tiles(small_tiles: str) -> None:
    # Neither centred first: the products of features as they are.
    xs = [x / x.shape[1] ** 0.5 for x in oracle.layers(SEVERAL_TILES[small_tiles], (40,))]
    for kernel in (sk.Polynomial(degree=2, c=0.5), sk.RBF()):
        k = sk.gram(xs[0].to(DEVICE), kernel, center="u").cpu()
        assert torch.equal(k, k.T)
        with sk.backend("reference"):
            wanted = sk.gram(xs[0].double(), kernel, center="u")
        assert oracle.relative_norm([k], [wanted]) <= 1e-5


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("center", [None, "double", "u"])
def test_gram(kernel: sk.Linear, center: str | None) -> None:
    x = oracle.layers(9, (20,), torch.float64)[0].div(20**0.5)
    upstream = torch.randn(9, 9, dtype=torch.float64)
    found = []
    for back_end, dtype, where in (("triton", torch.float32, DEVICE), ("reference", None, "cpu")):
        leaf = x.to(where, dtype or torch.float64).requires_grad_()
        with sk.backend(back_end):
            k = sk.gram(leaf, kernel, center=center)
            (grad,) = torch.autograd.grad(k, leaf, upstream.to(k))
        found.append([k.detach().cpu(), grad.cpu()])
    assert oracle.relative_norm(found[0][:1], found[1][:1]) <= 2e-6
    assert oracle.relative_norm(found[0][1:], found[1][1:]) <= 1e-5


@pytest.mark.parametrize(("n", "form"), [(150, "gram_apart"), (260, "gram_tiles")])
def test_gram_of_many_samples_is_symmetric_to_the_bit(n: int, form: str) -> None:
    x = oracle.layers(n, (40,))[0]
    assert form_of([x]).form == form
    for center in (None, "u") if n == 150 else (None,):
        k = sk.gram(x.to(DEVICE), center=center).cpu()
        assert torch.equal(k, k.T)
        with sk.backend("reference"):
            wanted = sk.gram(x.double(), center=center)
        assert oracle.relative_norm([k], [wanted]) <= 2e-6


def test_gram_of_one_and_of_three_samples() -> None:
    assert sk.gram(torch.tensor([[1.0, 2.0]], device=DEVICE)).tolist() == [[5.0]]
    three = sk.gram(torch.randn(3, 5, device=DEVICE), center="u")
    assert three.abs().max() <= 1e-5


@pytest.mark.parametrize("offset", [10, 1000])
@pytest.mark.parametrize("n", [8, 20])
def test_offset_of_the_features(n: int, offset: float) -> None:
    xs = []
    for x in oracle.layers(n, (256, 40), torch.float64):
        shift = offset * (0.5 + torch.rand(x.shape[1])) * torch.randn(x.shape[1]).sign()
        xs.append((x / x.std(dim=0) + shift).float())
    with sk.backend("reference"):
        wanted = sk.cka_matrix([x.double() for x in xs])
    actual = sk.cka_matrix(on_device(xs)).cpu()
    assert (actual - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_cka_does_not_see_the_scale(scale: float) -> None:
    xs = oracle.layers(8, (40, 90))
    expected = sk.cka_matrix(on_device(xs))
    scaled = sk.cka_matrix(on_device([xs[0] * scale, xs[1]]))
    torch.testing.assert_close(scaled, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "dead",
    [
        torch.full((8, 33), 0.1),
        torch.full((8, 33), 1e6),
        (torch.randn(1, 17) * 3 + 7).repeat(8, 1),
        torch.eye(8, 40),
        torch.empty(8, 0),
    ],
    ids=["constant", "large constant", "identical", "orthonormal", "no features"],
)
def test_layers_without_information(dead: Tensor) -> None:
    live = oracle.layers(8, (5, 21))
    xs = [x.to(DEVICE).requires_grad_() for x in (live[0], dead, live[1])]
    matrix = sk.cka_matrix(xs)
    assert not matrix[1].any()
    assert not matrix[:, 1].any()
    assert matrix[0, 0] == matrix[2, 2] == 1
    total = sk.cka_sum([xs])
    torch.testing.assert_close(total, matrix.sum())
    total.backward()
    assert not xs[1].grad.any()
    assert all(torch.isfinite(x.grad).all() and x.grad.any() for x in xs[::2])


def test_not_finite_features_show() -> None:
    xs = on_device(oracle.layers(8, (5, 21, 7)))
    xs[1][3, 4] = float("nan")
    if DEVICE == "cpu":  # looked at where that costs nothing
        with pytest.raises(ValueError, match=r"xs\[1\] of shape"):
            sk.cka_matrix(xs)
    else:
        matrix = sk.cka_matrix(xs)
        assert matrix[1].isnan().all()
        assert matrix[0, 2].isfinite()


def test_groups_and_means() -> None:
    xs = oracle.layers(8, (5, 21, 7, 4), torch.float64)
    layers = on_device(xs)
    matrix = sk.cka_matrix(layers)
    total = sk.cka_sum([layers[:1], layers[1:3], layers[3:]])
    torch.testing.assert_close(total, 2 + matrix[1:3, 1:3].sum())
    mean = sk.cka_sum([layers[:3], layers[3:]], reduction="mean")
    i, j = torch.triu_indices(4, 4, offset=1)
    torch.testing.assert_close(mean, matrix[i, j].mean())
    assert sk.cka_sum([layers[:1]], reduction="mean").item() == 0


def test_more_layers_than_one_program_takes() -> None:
    xs = oracle.layers(5, tuple(range(1, 36)), torch.float64)
    check(xs, sk.Linear(), "unbiased", 1e-11)


def test_gradients_of_some_layers_only() -> None:
    xs = on_device(oracle.layers(8, (5, 21, 7)))
    xs[1].requires_grad_()
    (some,) = torch.autograd.grad(sk.cka_sum([xs]), xs[1])
    for x in xs:
        x.requires_grad_()
    every = torch.autograd.grad(sk.cka_sum([xs]), xs)
    assert torch.equal(some, every[1])


@pytest.mark.parametrize("n", [8, 20])
def test_layouts(n: int) -> None:
    """Strides, unaligned rows and transposes give what contiguous features give."""
    x, y = oracle.layers(n, (48, 64))
    expected = sk.cka_matrix(on_device([x, y]))
    strided = torch.zeros(n, 96)
    strided[:, :48] = x
    offset = torch.zeros(n * 64 + 1)
    offset[1:] = y.flatten()
    views = [strided.to(DEVICE)[:, :48], offset.to(DEVICE)[1:].view(n, 64)]
    assert torch.equal(sk.cka_matrix(views), expected)
    transposed = [t.to(DEVICE).T.contiguous().T for t in (x, y)]
    assert torch.equal(sk.cka_matrix(transposed), expected)


def test_the_same_bits_every_time() -> None:
    for n, kernel in ((17, sk.Linear()), (8, sk.RBF())):
        xs = on_device(oracle.layers(n, (300, 129)))
        whole = n == 8
        first, second = (
            results([*xs, xs[0]], kernel, "unbiased", matrix_only=not whole) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_derivatives_are_refused() -> None:
    x, y = (t.to(DEVICE).requires_grad_() for t in oracle.layers(8, (5, 7)))
    (grad,) = torch.autograd.grad(sk.cka(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_torch_compile() -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sk.cka_sum([[x.relu(), y]]) + sk.hsic(x, y) + sk.gram(y, "rbf").mean()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    xs = oracle.layers(8, (12, 12))
    found = []
    for function in (compiled, loss):
        inputs = [x.to(DEVICE).requires_grad_() for x in xs]
        value = function(*(x * 1.5 for x in inputs))
        value.backward()
        found.append([value.detach(), *(x.grad for x in inputs)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)
    torch._dynamo.reset()


@pytest.fixture(params=[8, 20, 256])
def recorded(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[tuple[str, tuple[int, ...]]]]:
    """Samples, and the launches made; of many samples they are not made, only listed."""
    from sparsekern.ops.similarity.triton import launches

    recorded: list[tuple[str, tuple[int, ...]]] = []
    original = launches.launch

    def launch(kernel: object, grid: tuple[int, ...], *args: object, **meta: object) -> None:
        recorded.append((kernel.__name__, tuple(grid)))  # type: ignore[attr-defined]
        if request.param < 100:
            original(kernel, grid, *args, **meta)

    monkeypatch.setattr(launches, "launch", launch)
    return request.param, recorded


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF()], ids=repr)
def test_launches_are_those_of_the_plan(
    recorded: tuple[int, list[tuple[str, tuple[int, ...]]]], kernel: sk.Linear
) -> None:
    from sparsekern.ops.similarity.triton import calls, features, launches

    n, found = recorded
    xs = on_device(oracle.layers(n, (3, 40)))
    code = plan.RBF if isinstance(kernel, sk.RBF) else plan.LINEAR
    spec = (code, 0.5, 0.0, plan.U_CENTRING, True)
    call = launches.Call(xs, spec)
    out, state = calls.compare(xs, 0, 1, *spec, True)
    median = code == plan.RBF
    expected = plan.compare_launches(
        call.sizes, call.plan, call.device_class, code, True, median, features.TABLE_PIECE
    )
    assert found == [(launch.kernel, launch.grid) for launch in expected]
    found.clear()
    calls.compare_grad(out, xs, state, [True, True], 0, 1, *spec)
    how = plan.product_plan(call.sizes, call.plan, call.device_class)
    back = plan.compare_grad_launches(call.sizes, how, median, False, features.TABLE_PIECE)
    assert found == [(launch.kernel, launch.grid) for launch in back]
