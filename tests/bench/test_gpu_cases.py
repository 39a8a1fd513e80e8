"""The GPU's cases at quick sizes, on a GPU or with the kernels interpreted on the CPU."""

import pytest
import torch

import sparsekern as sk
from sparsekern.bench import cases, gate
from sparsekern.bench.cases import gpu
from sparsekern.bench.inputs import to_device

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUICK = {case.id: case for case in gpu.gpu_cases(quick=True)}


def test_registered_where_there_is_a_gpu():
    registered = {case.id for case in cases.registry()} & {c.id for c in gpu.gpu_cases(False)}
    assert bool(registered) == torch.cuda.is_available()
    assert [case.id.split("-")[0] for case in gpu.gpu_cases(False)] == ["G1"] + ["G2"] * 3 + [
        "G3"
    ] * 3


@pytest.mark.parametrize("name", QUICK)
def test_every_contender_agrees_with_the_oracle(name):
    case = QUICK[name]
    xs = to_device(case.inputs(torch.float32, 0), DEVICE)
    wanted = case.oracle(xs)
    for contender in case.contenders:
        if contender.name == "torch_compile":
            continue  # takes longer than everything else here
        with sk.backend("triton"):
            outputs = contender.outputs(contender.work(contender.prepared(xs)))
        assert gate.distance(case.error, outputs, wanted) <= case.bounds["float32"], contender.name


def test_bounds_follow_the_matmul_precision():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert gpu.bounds()["float32"] == 1e-2
        torch.set_float32_matmul_precision("highest")
        assert gpu.bounds()["float32"] == 1e-5
    finally:
        torch.set_float32_matmul_precision(before)
