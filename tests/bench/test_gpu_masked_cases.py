"""The GPU's cases of masked layers at quick sizes, on a GPU or with the kernels emulated."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch, native
from sparsekern.bench import cases, gate
from sparsekern.bench.cases import gpu_dense, gpu_masked
from sparsekern.bench.inputs import to_device

from ..ops import emulation, interpreter

DEVICE = "cuda" if not dispatch.missing_reason("cuda") else "cpu"
QUICK = {case.id: case for case in gpu_masked.masked_cases(quick=True)}
DENSE = {case.id: case for case in gpu_dense.dense_cases(quick=True)}


@pytest.fixture(scope="module")
def kernels() -> ModuleType | None:
    if DEVICE == "cuda":
        return None
    if emulation.COMPILER is None:
        pytest.skip("no C++ compiler to build the emulated kernels with")
    return emulation.module()


def test_registered_where_there_is_a_gpu() -> None:
    full = gpu_masked.masked_cases(False)
    assert bool({case.id for case in cases.registry()} & {case.id for case in full}) == (
        torch.cuda.is_available()
    )
    assert len({case.id for case in full}) == len(full) == 28
    full += gpu_dense.dense_cases(False)
    assert len({case.id for case in full}) == len(full) == 28 + 13
    assert all(case.id.startswith("G4-") for case in full)


@pytest.mark.parametrize("name", QUICK)
def test_every_contender_agrees_with_the_oracle(
    name: str, kernels: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels is not None:
        monkeypatch.setattr(native, "_load_cuda", lambda: (kernels, ""))
        dispatch._cuda_refuses.cache_clear()
    case = QUICK[name]
    inputs = to_device(case.inputs(torch.float32, 0), DEVICE)
    wanted = case.oracle(inputs)
    for contender in case.contenders:
        if not contender.same_work:
            continue
        with sk.backend("cuda"):
            outputs = contender.outputs(contender.work(contender.prepared(inputs)))
        error = gate.distance(case.error, outputs, wanted)
        assert error <= case.bounds["float32"], contender.name
    dispatch._cuda_refuses.cache_clear()


@pytest.mark.parametrize("name", DENSE)
def test_dense_products_agree_with_the_oracle(name: str) -> None:
    case = DENSE[name]
    inputs = to_device(case.inputs(torch.float32, 0), DEVICE)
    wanted = case.oracle(inputs)
    for contender in case.contenders:
        if contender.same_work:
            with sk.backend("triton"), interpreter.patched_once():
                state = contender.prepared(inputs)
                for _ in range(2):  # a gate's call may not be the first
                    outputs = contender.outputs(contender.work(state))
            error = gate.distance(case.error, outputs, wanted)
            assert error <= case.bounds["float32"], contender.name
