"""Dead-neuron rates against counting, in every layout; wrong arguments; torch.compile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counted(x: Tensor, channel_dim: int) -> tuple[float, float, float]:
    columns = x.double().movedim(channel_dim, -1).reshape(-1, x.shape[channel_dim])
    static = sum(bool((columns[:, c] <= 0).all()) for c in range(columns.shape[1]))
    total = int((columns <= 0).sum())
    count = columns.numel()
    dynamic = total - static * len(columns)
    return static / columns.shape[1], dynamic / count, total / count


def check(x: Tensor, channel_dim: int, *, named: bool = True) -> None:
    found = sk.dead_neuron_rate(x, channel_dim=channel_dim) if named else sk.dead_neuron_rate(x)
    assert all(value.dtype == torch.float32 and value.shape == () for value in found)
    expected = torch.tensor(counted(x.detach(), channel_dim))
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-6, atol=1e-7)


def activation(*shape: int, channel_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some channels dead everywhere, some nowhere, some here and there; zeros of both signs."""
    x = torch.randn(shape)
    channels = x.movedim(channel_dim, 0)
    channels[::4] = -channels[::4].abs()
    channels[1::4] = channels[1::4].abs() + 0.1
    channels[2::4] = channels[2::4].relu()
    x[torch.rand(shape) < 0.1] *= -0.0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_default_layouts(dtype: torch.dtype) -> None:
    for shape, channel_dim in (
        ((64, 37), 1),
        ((5, 9, 33), 2),
        ((4, 13, 6, 5), 1),
        ((2, 5, 3, 4, 6), 1),
        ((20_000, 9), 1),
        ((8, 16, 40, 40), 1),
    ):
        check(activation(*shape, channel_dim=channel_dim, dtype=dtype), channel_dim, named=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_around_the_widths_of_the_kernels(dtype: torch.dtype) -> None:
    """Ends of vectors, rows taken together, strips of many channels, lanes that fill up."""
    for channels in (1, 2, 3, 7, 8, 31, 33, 64, 100, 1000, 4099, 17_000):
        check(activation(37, channels, channel_dim=1, dtype=dtype), 1)
    for length in (1, 2, 15, 16, 49, 63, 64, 65, 129):
        check(activation(3, 5, length, channel_dim=1, dtype=dtype), 1)
    x = -torch.rand(2, 600_001).to(dtype)
    check(x.view(1, 2, -1), 1)
    check(x.view(-1, 2), 1)
    check(x.view(-1, 1), 1)


def test_the_channel_may_be_any_dimension() -> None:
    for dim in (-4, -3, -2, -1, 0, 1, 2, 3):
        check(activation(4, 6, 7, 5, channel_dim=dim), dim)


def test_memory_formats() -> None:
    x = activation(4, 13, 6, 5, channel_dim=1)
    check(x.contiguous(memory_format=torch.channels_last), 1, named=False)
    check(x.permute(0, 2, 3, 1), -1)
    check(x[:, ::2, 1:], 1)
    check(x[:1].expand(3, 13, 6, 5), 1)
    check(torch.complex(torch.randn(9, 4), torch.randn(9, 4)).conj().imag, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiny_and_special_values(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 4
    values = [tiny, -tiny, 0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan]
    x = torch.tensor([values], dtype=dtype)
    for layout in (x, x.repeat(1, 8), x.T.repeat(1, 70).reshape(1, 8, 70)):
        rate = sk.dead_neuron_rate(layout, channel_dim=1)
        # A NaN is not dead: it is not at or below 0.
        assert rate.static.item() == rate.total.item() == 0.5
        assert rate.dynamic.item() == 0


def test_all_and_none() -> None:
    check(torch.full((3, 4), -1.0), 1)
    check(torch.full((3, 4), 1.0), 1)
    check(torch.zeros(1, 1), 1)


def test_names_and_gradients() -> None:
    rate = sk.dead_neuron_rate(torch.randn(4, 5, requires_grad=True))
    assert isinstance(rate, sk.DeadNeuronRate)
    assert rate._fields == ("static", "dynamic", "total")
    assert not any(value.requires_grad for value in rate)


def test_thread_counts_change_nothing() -> None:
    x = activation(16, 30, 20, 20, channel_dim=1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.stack(sk.dead_neuron_rate(x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_errors() -> None:
    with pytest.raises(TypeError, match="activation must be a tensor, got list"):
        sk.dead_neuron_rate([1.0])
    with pytest.raises(TypeError, match=r"activation must be float32.*got torch.int64"):
        sk.dead_neuron_rate(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"activation must have at least two.*\(3,\)"):
        sk.dead_neuron_rate(torch.ones(3))
    for shape in ((0, 3), (3, 0), (2, 3, 0, 4)):
        with pytest.raises(ValueError, match="has no entries"):
            sk.dead_neuron_rate(torch.ones(shape))
    for wrong in (2, -3, 1.0, "C"):
        with pytest.raises(ValueError, match=f"channel_dim must be a dimension.*'?{wrong}"):
            sk.dead_neuron_rate(torch.ones(2, 2), channel_dim=wrong)


def test_opcheck() -> None:
    operator = torch.ops.sparsekern.activity_dead_neurons.default
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, (torch.randn(3, 4, 5, 2), 1), test_utils=utilities)


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_without_graph_breaks() -> None:
    def rates(x: Tensor) -> Tensor:
        return torch.stack(sk.dead_neuron_rate(x.relu()))

    compiled = torch.compile(rates, fullgraph=True, backend="aot_eager")
    for rows in (4, 7):
        x = activation(rows, 9, channel_dim=1)
        assert torch.equal(compiled(x), rates(x))
