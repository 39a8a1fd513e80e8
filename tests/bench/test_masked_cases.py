"""Every contender of the masked cases computes what the oracle computes."""

import pytest
import torch

from sparsekern.bench import gate
from sparsekern.bench.cases import masked, sampled

_WORKS = [
    *(masked.Work(kind, 6, 48, 32, 0.7) for kind in ("M1", "M2", "M3")),
    masked.Work("M1", 6, 48, 32, 0.5, "16x16"),
    masked.Work("M1", 6, 48, 32, 0.75, "1:4"),
]
_UPDATE = masked._update(64, 0.9)
_SAMPLED = [sampled.SampledWork(6, 40, 0.7, backward) for backward in (False, True)]
_CASES = [*(work.case() for work in (*_WORKS, *_SAMPLED)), _UPDATE]
_ALL = [
    pytest.param(case, contender, id=f"{case.id}-{contender.name}")
    for case in _CASES
    for contender in case.contenders
]


@pytest.mark.parametrize(("case", "contender"), _ALL)
def test_every_contender_is_right(case, contender):
    reason = contender.missing_reason()
    if reason:
        pytest.skip(reason)
    inputs = case.inputs(torch.float64, 0)
    outputs = contender.outputs(contender.work(contender.prepared(inputs)))
    if contender.same_work:
        assert gate.distance(case.error, outputs, case.oracle(inputs)) <= 1e-10


def test_cost_falls_with_the_kept_weights():
    for kind in ("M1", "M2"):
        costs = [masked.Work(kind, 8, 64, 64, s).cost for s in masked.SPARSITIES]
        operations = [cost.operations for cost in costs]
        assert operations == sorted(operations, reverse=True)
        assert operations[0] > 100 * operations[-1]


def test_structured_masks_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    blocks = masked.Work("M1", 6, 64, 64, 0.5, "16x16").mask(generator).view(4, 16, 4, 16)
    assert (blocks.all(3).all(1) == blocks.any(3).any(1)).all()
    groups = masked.Work("M1", 6, 64, 64, 0.75, "1:4").mask(generator).view(64, 16, 4)
    assert (groups.sum(2) == 1).all()
    ids = [case.id for case in masked.cases(quick=False)]
    assert len(ids) == len(set(ids))
    assert "M2-256x1024x4096-2of4-50" in ids


def test_sparsity_is_a_curve():
    points = [case.series for case in masked.cases(quick=False) if case.series is not None]
    families = {point.family for point in points}
    assert "M1 (256, 1024, 4096)" in families
    assert "M2 (64, 4096, 4096)" in families
    for family in families:
        assert len({p.x for p in points if p.family == family}) >= 6
