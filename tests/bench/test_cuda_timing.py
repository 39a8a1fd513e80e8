"""Timing on a GPU, with a device that only writes down what it was asked."""

import contextlib

import pytest
import torch

from sparsekern.bench import command, floor, runner
from sparsekern.bench.case import Contender
from sparsekern.bench.cuda_timing import CudaTimer
from sparsekern.bench.features import FeatureWork
from sparsekern.bench.results import Row
from sparsekern.bench.settings import Settings


class _Cuda:
    """A device on which every call takes 2 ms, and every flush 5."""

    def __init__(self, capturable=True):
        self.log, self.clock, self.capturable, self.held = [], 0.0, capturable, 100
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                self.at = None

            def record(self):
                cuda.log.append("event")
                self.at = cuda.clock

            def elapsed_time(self, other):
                assert cuda.log[-1] == "synchronize"
                return other.at - self.at

        class CUDAGraph:
            def replay(self):
                cuda.log.append("replay")
                cuda.clock += 1

        self.Event, self.CUDAGraph = Event, CUDAGraph

    def work(self):
        self.log.append("call")
        self.clock += 2
        self.peak = max(self.peak, self.held + 70) if hasattr(self, "peak") else 0
        return "result"

    def flush(self):
        self.log.append("flush")
        self.clock += 5

    def synchronize(self):
        self.log.append("synchronize")

    class Stream:
        def wait_stream(self, other):
            pass

    def current_stream(self):
        return self.Stream()

    def stream(self, _stream):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, _graph):
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    def memory_allocated(self):
        return self.held

    def reset_peak_memory_stats(self):
        self.peak = self.held

    def max_memory_allocated(self):
        return self.peak


def test_only_what_is_between_the_events_is_timed():
    cuda = _Cuda()
    timer = CudaTimer(cuda, cuda.flush)
    assert timer.device_seconds(cuda.work, 3) == pytest.approx(2e-3)
    assert cuda.log == ["flush", "event", "call", "event"] * 3 + ["synchronize"]


def test_the_host_is_timed_on_an_idle_device():
    cuda = _Cuda()
    assert 0 <= CudaTimer(cuda, cuda.flush).host_seconds(cuda.work, 2) < 0.1
    assert cuda.log == ["synchronize", "call", "synchronize", "call", "synchronize"]


def test_a_graph_is_replayed_where_it_can_be_captured():
    cuda = _Cuda()
    timer = CudaTimer(cuda, cuda.flush)
    assert timer.device_seconds(timer.captured(cuda.work), 1) == pytest.approx(1e-3)
    stubborn = _Cuda(capturable=False)
    timer = CudaTimer(stubborn, stubborn.flush)
    assert timer.captured(stubborn.work) == stubborn.work


def test_memory_is_the_peak_less_what_is_returned():
    cuda = _Cuda()
    timer = CudaTimer(cuda, cuda.flush)
    assert timer.extra_bytes(cuda.work, lambda result: len(result)) == 70 - len("result")


def test_a_run_takes_its_times_from_the_device(monkeypatch):
    cuda = _Cuda()
    cuda.peak = 0
    monkeypatch.setattr(CudaTimer, "__init__", lambda self: None)
    monkeypatch.setattr(CudaTimer, "_cuda", cuda, raising=False)
    monkeypatch.setattr(CudaTimer, "_flush", cuda.flush, raising=False)
    monkeypatch.setattr(runner, "to_device", lambda value, device: value)
    monkeypatch.setattr(floor, "measure", lambda *_: floor.Floor(1e12, 1e12))
    work = FeatureWork("gram", 16, (8,))
    case = work.case(("eager",), id="T", suite="similarity", title="t", reason="r")
    settings = Settings(backend="reference", device="cuda")
    results = runner.run([case], settings)
    (result,) = results.cases
    assert [row.status for row in result.rows] == ["ok", "ok"]
    # Everything was captured, so everyone takes what a replay takes.
    assert [row.seconds for row in result.rows] == [pytest.approx(1e-3)] * 2
    assert all(row.host_seconds < 0.1 for row in result.rows)
    assert all(row.extra_bytes == 0 for row in result.rows)
    assert results.file_name.startswith("cuda-")


def test_what_is_slow_is_not_called_often(monkeypatch):
    cuda = _Cuda()
    monkeypatch.setattr(CudaTimer, "__init__", lambda self: None)
    monkeypatch.setattr(CudaTimer, "_cuda", cuda, raising=False)
    monkeypatch.setattr(CudaTimer, "_flush", cuda.flush, raising=False)
    monkeypatch.setattr(runner, "_output_bytes", lambda contender: len)
    settings = Settings(backend="reference", device="cuda", budget=0.005)
    assert settings.effort.slow == 0.001  # a call takes 2 ms
    contender = Contender("slow", "slow", lambda _: cuda.work())
    row = Row("slow", "slow")
    runner._time_on_gpu([runner.Entry(row, contender, [cuda.work], 1e-5)], settings)
    # An estimate, the host's time, memory, and the rounds of a slow call; nothing to warm up.
    assert cuda.log.count("call") == 3 + settings.effort.slow_rounds
    assert "replay" not in cuda.log
    assert row.seconds == pytest.approx(2e-3)


def test_a_missing_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: torch finds no GPU"):
        command._checked_device("cuda")
