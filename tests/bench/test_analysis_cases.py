"""Every contender of the comparisons computes what the oracle computes, or is shown as wrong."""

import pytest
import torch

from sparsekern.bench import gate
from sparsekern.bench.cases import analysis

pytest.importorskip("sklearn")
_CASES = analysis.cases(quick=True)
_ALL = [
    pytest.param(case, contender, id=f"{case.id}-{contender.name}")
    for case in _CASES
    for contender in case.contenders
]
# On maps ckatorch's class fails; of sequences it compares the tokens inside each sample.
_OTHERWISE = {("A2-resnet20", "ckatorch"), ("A2-transformer", "ckatorch")}


@pytest.mark.parametrize(("case", "contender"), _ALL)
def test_every_contender_is_right(case, contender):
    reason = contender.missing_reason()
    if reason:
        pytest.skip(reason)
    inputs = case.inputs(torch.float32, 0)
    if (case.id, contender.name) in _OTHERWISE:
        pytest.xfail("it computes something else")
    outputs = contender.outputs(contender.work(contender.prepared(inputs)))
    if contender.same_work:
        expected = case.oracle(inputs)
        if contender.name == "pytorch_cka":
            expected = [matrix.clamp(0, 1) for matrix in expected]  # as it does with its own
        distance = gate.distance(case.error, outputs, expected)
        assert distance <= (1e-5 if contender.name == "sparsekern" else case.bounds["float32"])


def test_the_models_are_those_of_the_titles():
    resnet, transformer = analysis._resnet(False), analysis._transformer(False)
    assert len(resnet.model()[1]) == 20
    assert len(transformer.model()[1]) == 12
