"""Every contender of a training step takes the same step."""

import pytest
import torch

from sparsekern.bench import gate
from sparsekern.bench.cases import training
from sparsekern.training.models import build_model, mlp


def _resnet20():
    return build_model("resnet20", width=4, channels=1, classes=10, seed=0, size=8)


def _vit():
    model = build_model("vit", width=12, channels=1, classes=10, seed=0, size=8)
    model.blocks = model.blocks[:1]
    return model


def _mlp():
    torch.manual_seed(0)
    return mlp.MLP((24, 24), 16, 10)


_WORKS = [
    training.StepWork("mlp", "", "", _mlp, (6, 1, 4, 4), 0.8),
    training.StepWork("resnet20", "", "", _resnet20, (6, 1, 8, 8), 0.8),
    training.StepWork("vit", "", "", _vit, (6, 1, 8, 8), 0.8),
]
_ALL = [
    pytest.param(work, contender, id=f"{work.network}-{contender.name}")
    for work in _WORKS
    for contender in work.case().contenders
]


@pytest.mark.parametrize(("work", "contender"), _ALL)
def test_every_contender_takes_the_same_steps(work, contender):
    inputs = work.inputs(torch.float64)
    step, oracle = contender.prepared(inputs), work.step("masked_grad", inputs)
    case = work.case()
    for _ in range(3):
        outputs, expected = contender.outputs(contender.work(step)), oracle()
        error = gate.distance(case.error, outputs, expected)
        assert (error <= 1e-9) is contender.same_work


def test_the_oracle_is_the_first_step_in_float64():
    work = _WORKS[0]
    inputs = work.inputs(torch.float32)
    expected = work.oracle(inputs)
    assert all(x.dtype == torch.float64 for x in expected)
    found = work.step("sparsekern", inputs)()
    assert gate.distance(work.case().error, found, expected) < 1e-5
    assert [int((x != 0).sum()) for x in expected[1:]] != [x.numel() for x in expected[1:]]
