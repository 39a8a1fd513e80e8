"""Dead-neuron rates on the CUDA kernels against counting: on a GPU, and emulated everywhere."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from .test_dead_neurons import DTYPES, activation, counted, sk

# Channels that fill 16-byte loads and that do not; runs shorter and longer than a load, than a warp
# and than a chunk (4096 float32 values).
SHAPES = [
    (5, 3),
    (700, 64),
    (37, 300),
    (3, 1100),
    (4, 6, 24),
    (9, 5, 1, 2),
    (6, 12, 3, 3),
    (5, 16, 7, 7),
    (2, 10, 32, 32),
    (2, 3, 70, 90),
    (1, 1, 1, 9000),
]


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rates(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    channel_dim = len(shape) - 1 if len(shape) <= 3 else 1
    x = activation(*shape, channel_dim=channel_dim, dtype=dtype)
    found = sk.dead_neuron_rate(x.to(backend))
    assert all(rate.device.type == backend and rate.dtype == torch.float32 for rate in found)
    expected = torch.tensor(counted(x, channel_dim))
    torch.testing.assert_close(torch.stack(found).cpu(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype, backend: str) -> None:
    image = activation(3, 24, 5, 6, channel_dim=1, dtype=dtype).to(backend)
    flat = activation(41 * 16 + 1, 1, channel_dim=1, dtype=dtype).to(backend).flatten()
    for x in (
        image.contiguous(memory_format=torch.channels_last),
        image[:, ::2],
        image.transpose(2, 3),
        flat[1:].view(41, 16),  # not aligned to 16 bytes
        flat[1:].view(1, 2, 82, 4),
    ):
        channel_dim = 1 if x.dim() == 4 else x.dim() - 1
        expected = torch.tensor(counted(x.cpu(), channel_dim))
        found = torch.stack(sk.dead_neuron_rate(x)).cpu()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_an_impossible_launch_is_an_error(emulated_cuda: ModuleType) -> None:
    """The emulation refuses what a GPU does: here a grid of no blocks, for no samples."""
    memory = torch.empty(emulated_cuda.dead_bytes(8), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="count_columns: invalid configuration argument"):
        emulated_cuda.dead_rates((0, 0), 0, 0, 0, 8, 1, memory.data_ptr(), [0, 0, 0])


def test_nan_is_not_dead(backend: str) -> None:
    x = torch.tensor([[float("nan"), 1.0], [-1.0, 0.0]], device=backend)
    found = [rate.item() for rate in sk.dead_neuron_rate(x)]
    assert found == [0.0, 0.5, 0.5]
