"""What only a GPU can show: real sizes and dtypes, graphs, streams, no waiting, the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from . import oracle
from .oracle import DTYPES, ESTIMATORS, KERNELS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

# Every form and tile: streamed, whole columns in one tile and in two, lower tiles.
SAMPLES = (4, 8, 13, 16, 20, 32, 50, 64, 100, 128, 200, 256, 300, 700)
WIDTHS = (1, 64, 300, 4096, 20000)


@pytest.fixture(autouse=True)
def backend() -> Iterator[str]:
    with sk.backend("triton"):
        yield "triton"


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """As in every test of this folder, but the reference may use what has no deterministic form."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def features(n: int, widths: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [(x / x.shape[1] ** 0.5).to(dtype) for x in oracle.layers(n, widths, torch.float64)]


def outcome(
    xs: list[Tensor], kernel: sk.Linear, estimator: str, back_end: str = "triton"
) -> list[Tensor]:
    """CKA, HSIC and a sum over groups, and the gradients of a mix of them, in float64."""
    inputs = [x.detach().requires_grad_() for x in xs]
    options = {"kernel": kernel, "estimator": estimator}
    with sk.backend(back_end):
        matrix = sk.cka_matrix(inputs, **options)
        rectangle = sk.hsic_matrix(inputs[:1], inputs[1:], **options)
        total = sk.cka_sum([inputs[:2], inputs[2:]], **options)
        mix = torch.arange(matrix.numel(), device=matrix.device).reshape(matrix.shape).cos()
        gradients = torch.autograd.grad((matrix * mix).sum() + total, inputs)
    return [x.detach().double() for x in (matrix, rectangle, total, *gradients)]


def errors(found: list[Tensor], wanted: list[Tensor]) -> tuple[float, float]:
    values = max(oracle.relative_norm([a], [b]) for a, b in zip(found[:3], wanted[:3], strict=True))
    return values, oracle.relative_norm(found[3:], wanted[3:])


# Relative to the Euclidean norm; the gradient cancels where CKA is near 1 and has ten times that.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", SAMPLES)
def test_linear(n: int, estimator: str, dtype: torch.dtype) -> None:
    xs = [x.cuda() for x in features(n, WIDTHS, dtype)]
    found = outcome(xs, sk.Linear(), estimator)
    wanted = outcome([x.double() for x in xs], sk.Linear(), estimator, "reference")
    values, gradients = errors(found, wanted)
    assert values <= TOLERANCE[dtype]
    assert gradients <= 10 * TOLERANCE[dtype]


@pytest.mark.parametrize("n", [8, 16, 64, 128, 256, 300])
def test_precisions_of_float32(n: int, precision: str) -> None:
    xs = [x.cuda() for x in features(n, (300, 4096, 20000), torch.float32)]
    found = outcome(xs, sk.Linear(), "unbiased")
    wanted = outcome([x.double() for x in xs], sk.Linear(), "unbiased", "reference")
    values, gradients = errors(found, wanted)
    assert values <= (3e-3 if precision == "medium" else 1e-5)
    assert gradients <= (3e-2 if precision == "medium" else 1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("n", [8, 40, 200, 300])
def test_kernels(n: int, kernel: sk.Linear, estimator: str, dtype: torch.dtype) -> None:
    xs = [x.cuda() for x in features(n, (64, 300, 4096), dtype)]
    found = outcome(xs, kernel, estimator)
    wanted = outcome([x.double() for x in xs], kernel, estimator, "reference")
    values, gradients = errors(found, wanted)
    assert values <= 3 * TOLERANCE[dtype]
    assert gradients <= 30 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [9, 64, 300, 1500, 4100])
def test_gram(n: int, dtype: torch.dtype) -> None:
    x = features(n, (700,), dtype)[0].cuda()
    for kernel in KERNELS.values():
        for center in (None, "double", "u"):
            found = sk.gram(x, kernel, center=center)
            with sk.backend("reference"):
                wanted = sk.gram(x.double(), kernel, center=center)
            assert oracle.relative_norm([found], [wanted]) <= 5 * TOLERANCE[dtype]
            assert torch.equal(found, found.T)


@pytest.mark.parametrize("offset", [10, 1000])
@pytest.mark.parametrize("n", [8, 16, 64, 200, 256, 400])
def test_offset_of_the_features(n: int, offset: float) -> None:
    xs = []
    for x in oracle.layers(n, (256, 5000), torch.float64):
        shift = offset * (0.5 + torch.rand(x.shape[1])) * torch.randn(x.shape[1]).sign()
        xs.append((x / x.std(dim=0) + shift).float().cuda())
    with sk.backend("reference"):
        wanted = sk.cka_matrix([x.double() for x in xs])
    assert (sk.cka_matrix(xs) - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("offset", [0.5, 1.7, 1000])
@pytest.mark.parametrize("n", [100, 200, 256])
def test_offset_of_features_on_tensor_cores(n: int, offset: float) -> None:
    # Below twice the spread they are multiplied as they are, beyond centred first.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for dtype in (torch.float32, torch.bfloat16):
            if dtype == torch.bfloat16 and offset == 1000:
                continue  # its digits hold nothing but the offset
            xs = [
                (x / x.std(dim=0) + offset).to(dtype).cuda() for x in oracle.layers(n, (300, 5000))
            ]
            found = outcome([*xs, xs[0]], sk.Linear(), "unbiased")
            doubles = [x.double() for x in (*xs, xs[0])]
            values, gradients = errors(
                found, outcome(doubles, sk.Linear(), "unbiased", "reference")
            )
            assert values <= TOLERANCE[torch.bfloat16]
            assert gradients <= 10 * TOLERANCE[torch.bfloat16]
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("n", [8, 64, 256, 300])
def test_the_same_bits_every_time(n: int) -> None:
    for kernel in KERNELS.values():
        for dtype in (torch.float32, torch.bfloat16):
            xs = [x.cuda() for x in features(n, (300, 20000, 4096), dtype)]
            first = outcome(xs, kernel, "unbiased")
            for _ in range(5):
                again = outcome(xs, kernel, "unbiased")
                assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def graphed(call: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph, outputs


@pytest.mark.parametrize("n", [8, 64, 256, 300])
@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF()], ids=repr)
def test_cuda_graph(n: int, kernel: sk.Linear) -> None:
    xs = [x.cuda().requires_grad_() for x in features(n, (300, 4096), torch.float32)]

    def call() -> list[Tensor]:
        loss = sk.cka_sum([xs], kernel=kernel)
        return [loss, *torch.autograd.grad(loss, xs)]

    graph, outputs = graphed(call)
    for _ in range(2):  # other features in the same places: nothing of the first is kept
        with torch.no_grad():
            for x in xs:
                x.copy_(torch.randn_like(x))
        graph.replay()
        expected = call()
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF(), sk.Cosine()], ids=repr)
def test_nothing_waits_for_the_device(kernel: sk.Linear) -> None:
    xs = [x.cuda() for x in features(32, (300, 4096), torch.float32)]
    outcome(xs, kernel, "unbiased")
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        leaves = [x.requires_grad_() for x in xs]
        loss = sk.cka_sum([leaves], kernel=kernel) + sk.cka_matrix(leaves, kernel=kernel).sum()
        torch.autograd.grad(loss, leaves)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_other_streams() -> None:
    xs = [x.cuda() for x in features(64, (300, 20000), torch.float32)]
    expected = outcome([*xs, xs[0]], sk.Linear(), "unbiased")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would run before this ends
        late = [x.clone() for x in xs]
        found = outcome([*late, late[0]], sk.Linear(), "unbiased")
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here")
    xs = features(64, (300, 4096, 5), torch.float32)
    expected = outcome([x.to("cuda:0") for x in xs], sk.Linear(), "unbiased")
    found = outcome([x.to("cuda:1") for x in xs], sk.Linear(), "unbiased")
    assert all(x.device.index == 1 for x in found)
    assert errors([x.cpu() for x in found], [x.cpu() for x in expected])[0] <= 1e-6


def test_autocast_changes_no_bit() -> None:
    xs = [x.cuda() for x in features(64, (300, 4096, 5), torch.float32)]
    expected = outcome(xs, sk.Linear(), "unbiased")
    with torch.autocast("cuda", torch.bfloat16):
        found = outcome(xs, sk.Linear(), "unbiased")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_torch_compile() -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sk.cka_sum([[x.relu(), y]]) + sk.hsic(x, y) + sk.gram(y, "rbf").mean()

    torch._dynamo.reset()
    xs = features(32, (300, 300), torch.float32)
    found = []
    for function in (torch.compile(loss, fullgraph=True), loss):
        inputs = [x.cuda().requires_grad_() for x in xs]
        value = function(*inputs)
        value.backward()
        found.append([value.detach(), *(x.grad for x in inputs)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_auto_takes_triton() -> None:
    from sparsekern import dispatch

    with sk.backend("auto"):
        assert dispatch.select(torch.device("cuda", 0)) == "triton"
