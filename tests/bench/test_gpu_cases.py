"""The GPU's cases at quick sizes, on a GPU or with the kernels interpreted on the CPU."""

import pytest
import torch

import sparsekern as sk
from sparsekern.bench import cases, gate
from sparsekern.bench.cases import gpu, gpu_sparse
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


SPARSE = {case.id: case for case in gpu_sparse.sparse_cases(quick=True)}


def test_sparse_cases_cover_batches_and_numbers_of_values():
    names = [case.id for case in gpu_sparse.sparse_cases(quick=False)]
    assert len(names) == len(set(names))
    for start in ("G5-1x4096x4096-90", "G5-16x4096x14336-95", "G6-T1", "G6-1024M-T1-masks"):
        assert start in names
    assert {name for name in names if name.startswith("G6-256M")} == {
        f"G6-256M-{name}" for name in ("T1", "T1-masks", "P1", "P2", "D1-contiguous")
    }
    assert not any(case.summary for case in gpu_sparse.sparse_cases(quick=False))


# Those of the CPU under another name are tried in test_contenders.py.
@pytest.mark.parametrize(
    "name", [name for name in SPARSE if name.startswith("G5") or "16384" in name]
)
def test_every_sparse_contender_agrees_with_the_oracle(name):
    case = SPARSE[name]
    made = to_device(case.inputs(torch.float32, 0), DEVICE)
    wanted = case.oracle(made)
    for contender in case.contenders:
        outputs = contender.outputs(contender.work(contender.prepared(made)))
        assert gate.distance(case.error, outputs, wanted) <= case.bounds["float32"], contender.name


def test_floors_of_larger_numbers_of_values_are_in_proportion():
    costs = {case.id: case.cost for case in gpu_sparse.sparse_cases(quick=False)}
    for name, element in (("T1", 4), ("T1-masks", 4), ("P1", 4), ("P2", 4)):
        small, large = costs[f"G6-{name}"], costs[f"G6-1024M-{name}"]
        ratio = (1 << 30) / costs["G6-T1"].values
        assert large.bytes(element) == pytest.approx(ratio * small.bytes(element))
    weight = costs["G5-1x4096x4096-90"]
    assert weight.bytes(2) == 4096 * 4096 // 8 + 2 * (round(4096 * 4096 * 0.1) + 2 * 4096)
