"""The SparseProp peer: right for every batch and thread count, named as absent without g++."""

import shutil

import pytest
import torch

from sparsekern.bench import gate, runner, sparseprop
from sparsekern.bench.cases import masked
from sparsekern.bench.settings import Settings

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 7, 16, 33, 64, 150])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_it_agrees_at_every_batch(batch, threads, dtype):
    assert sparseprop.missing_reason() == ""
    bound = 1e-6 if dtype == torch.float32 else 1e-13
    with runner.pinned_threads(threads):
        for kind in ("M1", "M2"):
            work = masked.Work(kind, batch, 45, 37, 0.7)
            inputs = work.inputs(dtype)
            inputs["mask"][3] = False  # a row without weights
            expected = work.oracle(inputs)
            for contender in sparseprop.contenders(kind):
                state = contender.prepared(inputs)
                for _ in range(2):  # the second call finds its memory used
                    outputs = contender.outputs(contender.work(state))
                assert gate.distance(gate.relative_distance, outputs, expected) <= bound


def test_other_dtypes_are_refused():
    work = masked.Work("M1", 4, 8, 8, 0.5)
    contender = sparseprop.contenders("M1")[0]
    state = contender.prepared(work.inputs(torch.bfloat16))
    with pytest.raises(TypeError, match="float32 and float64, got bfloat16"):
        contender.work(state)


@pytest.fixture
def forgotten():
    for function in (sparseprop.missing_reason, sparseprop._library):
        function.cache_clear()
    yield
    for function in (sparseprop.missing_reason, sparseprop._library):
        function.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_without_a_compiler_it_is_absent(monkeypatch):
    monkeypatch.setattr(sparseprop.shutil, "which", lambda name: None)
    case = masked.Work("M1", 4, 8, 8, 0.5).case()
    settings = Settings(backend="reference", quick=True, compare=("sparseprop",))
    (result,) = runner.run([case], settings).cases
    assert result.row("sparseprop").status == "absent"
    assert result.row("sparseprop").note == "no g++ to compile SparseProp with"


@needs_compiler
@pytest.mark.usefixtures("forgotten")
def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sparseprop, "_FLAGS", ["--no-such-flag"])
    assert "g++ cannot compile SparseProp: " in sparseprop.missing_reason()
    assert not list(tmp_path.rglob("*.so"))
