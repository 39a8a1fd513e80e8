"""Timing on a GPU: CUDA events, caches flushed before every call, graphs replayed where possible.

Events are recorded on the stream around each call, so that what is measured is the device's time
and not the host's; the host's is measured apart, as the time until a call returns. Before each call
a buffer larger than the L2 cache is overwritten, so that no call finds its inputs there. Where the
call can be captured in a CUDA graph its replay is timed, which leaves out gaps between kernels that
the host is too slow to fill. Tested against a stand-in for the device, not yet run on hardware.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

_FLUSH_BYTES = 512 << 20  # several times any L2 cache of today
_WARM_UP = 3  # calls before a capture, as torch asks for: libraries set themselves up


class CudaTimer:
    """Times calls on the current device.

    Args:
        cuda: the module that stands for the device: ``torch.cuda``.
        flush: overwrites the L2 cache; by default by zeroing a large buffer.
    """

    def __init__(self, cuda: Any = torch.cuda, flush: Callable[[], object] | None = None) -> None:
        self._cuda = cuda
        if flush is None:
            flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_
        self._flush = flush

    def device_seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Mean of the time on the device, the flushes between the calls not counted."""
        events = []
        for _ in range(repeats):
            start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            self._flush()
            start.record()
            call()
            end.record()
            events.append((start, end))
        self._cuda.synchronize()
        milliseconds = sum(start.elapsed_time(end) for start, end in events)
        return float(milliseconds / 1e3 / repeats)

    def host_seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Mean of the time until a call returns to the host, the device being idle before."""
        total = 0.0
        for _ in range(repeats):
            self._cuda.synchronize()
            start = time.perf_counter()
            call()
            total += time.perf_counter() - start
        self._cuda.synchronize()
        return total / repeats

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """The replay of the call's graph, or the call itself where it cannot be captured."""
        try:
            stream = self._cuda.Stream()
            stream.wait_stream(self._cuda.current_stream())
            with self._cuda.stream(stream):
                for _ in range(_WARM_UP):
                    call()
            self._cuda.current_stream().wait_stream(stream)
            graph = self._cuda.CUDAGraph()
            with self._cuda.graph(graph):
                call()
        except RuntimeError:  # it waits for the device, or allocates outside torch
            self._cuda.synchronize()
            return call
        replay: Callable[[], object] = graph.replay
        return replay

    def extra_bytes(self, call: Callable[[], Any], size: Callable[[Any], int]) -> int:
        """Peak of torch's allocator in one call above what it held, less what is returned.

        Args:
            call: allocates through torch.
            size: bytes of what ``call`` returned.
        """
        self._cuda.synchronize()
        before = int(self._cuda.memory_allocated())
        self._cuda.reset_peak_memory_stats()
        returned = call()
        self._cuda.synchronize()
        return max(0, int(self._cuda.max_memory_allocated()) - before - size(returned))
