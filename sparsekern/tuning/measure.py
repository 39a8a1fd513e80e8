"""Measures the rates that :mod:`sparsekern.ops.masked.choice` models times with.

Each is found by timing one call whose time it decides, and taking off what the model counts
beside it. Where the model is wrong is found by timing both algorithms on a grid of layers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .. import native
from ..bench.runner import settle_allocator
from ..ops.masked import calls, choice, conv_calls
from ..ops.masked.corrections import Corrections
from ..ops.masked.pattern import SparsityPattern
from ..ops.masked.rates import DtypeRates, Rates
from . import corrections, grid

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Those that networks are trained in; a grid takes half a minute, and minutes in float16, whose
# convolutions torch does one number at a time.
_CORRECTED_DTYPES = (torch.float32, torch.bfloat16)
_CORRECTED_SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9)  # between which one algorithm takes over
_CORRECTED_SECONDS = 0.05  # for each part at each of them
_SECONDS = 0.7  # for each of the 6 calls of a dtype
_LEAST, _MOST = 3, 60  # times that a call is made
_BATCH, _ROWS, _NEAR, _FAR = 256, 512, 256, 2048  # of the products: columns within a cache, beyond
_IMAGES, _CHANNELS, _SIZE = 64, 64, 8  # of the convolutions, 3 x 3


def measure(say: Callable[[str], None], seconds: float = _SECONDS) -> Rates:
    """The rates of the instruction set in use with torch's threads, in about 80 seconds.

    Args:
        say: told what is going on.
        seconds: for each call, beyond its least repetitions.
    """
    settle_allocator()
    found = {}
    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        own = _of_dtype(dtype, seconds)
        numbers = zip(DtypeRates._fields, own[:-1], strict=False)  # all but the corrections
        say(f"{name}: " + ", ".join(f"{field} {number:.3g}" for field, number in numbers))
        if dtype in _CORRECTED_DTYPES:
            own = own._replace(corrections=_corrections(dtype, own))
            say(f"{name}: corrections " + ", ".join(f"{number:g}" for number in own.corrections))
        found[name] = own
    return Rates(**found)


def _corrections(dtype: torch.dtype, rates: DtypeRates) -> Corrections:
    measured = grid.measure(
        str(native.cpu().isa()),
        torch.get_num_threads(),
        dtype,
        lambda _: None,
        _CORRECTED_SECONDS,
        _CORRECTED_SPARSITIES,
    )
    return corrections.fit([measured], rates)


@torch.no_grad()
def _of_dtype(dtype: torch.dtype, seconds: float) -> DtypeRates:
    threads = torch.get_num_threads()

    def of_call(call: Callable[[], object]) -> float:
        """Nanoseconds of one thread."""
        return 1e9 * threads * _median(call, seconds)

    def sparse_rate(columns: int) -> float:
        x, weight = torch.randn(_BATCH, columns).to(dtype), torch.randn(_ROWS, columns).to(dtype)
        pattern = SparsityPattern(torch.rand(_ROWS, columns) > 0.8)
        spent = of_call(lambda: calls.masked_linear(x, weight, None, pattern.tensors, True, False))
        sizes = (_BATCH, _ROWS, columns, pattern.nnz)
        return _rate(2 * _BATCH * pattern.nnz, spent, choice.sparse_overhead(*sizes))

    x, weight = torch.randn(_BATCH, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    dense = _rate(2 * _BATCH * weight.numel(), of_call(lambda: x @ weight.T))

    images = torch.randn(_IMAGES, _CHANNELS, _SIZE, _SIZE).to(dtype)
    kernel = torch.randn(_CHANNELS, _CHANNELS, 3, 3).to(dtype)
    pixels, moved = images[:, 0].numel(), 2 * images.numel()
    # Torch's cost beside the operations is that of a depthwise convolution, which has few.
    thin = torch.randn(_CHANNELS, 1, 3, 3).to(dtype)
    dense_pixel = of_call(lambda: F.conv2d(images, thin, None, 1, 1, 1, _CHANNELS)) / moved
    beside = min(dense_pixel, _MOST_PIXEL)
    convolution = _rate(
        2 * pixels * kernel.numel(),
        of_call(lambda: F.conv2d(images, kernel, None, 1, 1)),
        moved * beside,
    )

    def sparse_convolution(density: float) -> tuple[int, float]:
        pattern = SparsityPattern(torch.rand(kernel.shape) < density)
        geometry = ([1, 1], [1, 1], [1, 1], 1)
        spent = of_call(
            lambda: conv_calls.masked_conv2d(
                images, kernel, None, pattern.tensors, *geometry, True, False
            )
        )
        return 2 * pixels * pattern.nnz, spent

    (many, long), (few, short) = sparse_convolution(0.3), sparse_convolution(0.01)
    rate = (many - few) / max(long - short, 1e-3 * long)
    pixel = max(short - few / rate, 0.1 * short) / moved
    return DtypeRates(
        dense, sparse_rate(_NEAR), sparse_rate(_FAR), convolution, rate, beside, pixel
    )


# Nanoseconds for each pixel: what torch's depthwise convolution takes beyond that is its own
# slowness (16-bit floats have no kernel of their own everywhere), not what every convolution pays.
_MOST_PIXEL = 0.5


def _rate(operations: int, spent: float, beside: float = 0.0) -> float:
    return operations / max(spent - beside, 0.2 * spent)


def _median(call: Callable[[], object], seconds: float) -> float:
    call()  # what is set up once is not counted
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < _LEAST or (len(samples) < _MOST and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)
