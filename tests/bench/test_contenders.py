"""Every baseline and peer computes what sparsekern computes; the gate tells when one does not."""

import dataclasses

import pytest
import torch

from sparsekern.bench import gate, inputs, peers, runner
from sparsekern.bench.case import Contender
from sparsekern.bench.cases import regularizers, similarity
from sparsekern.bench.features import FeatureWork
from sparsekern.bench.settings import Settings
from sparsekern.ops.similarity import RBF, Cosine, Polynomial

_MATRIX = FeatureWork("cka_matrix", 12, (40, 30, 20))
_LOSS = FeatureWork("cka_sum", 8, (60, 50, 40, 30), groups=(3, 1))
_NARROW = FeatureWork("cka", 60, (8, 5))
_RBF = FeatureWork("cka", 21, (8, 5), kernel=RBF(0.5))
_RBF_EVEN = FeatureWork("cka", 20, (8, 5), kernel=RBF(0.5))
_GENERAL = [
    FeatureWork("gram", 21, (8,)),
    FeatureWork("gram", 100, (8,), gradient=True),
    *(FeatureWork("hsic", 9, (30, 20), gradient=gradient) for gradient in (False, True)),
    *(FeatureWork("hsic_matrix", 9, (30, 20, 10), gradient=gradient) for gradient in (False, True)),
    FeatureWork("cka", 9, (30, 20), gradient=True),
    FeatureWork("cka_matrix", 9, (30, 20, 10), groups=(2, 1)),
    FeatureWork("cka_matrix", 9, (30, 20, 10), gradient=True),
    *(
        FeatureWork("cka", n, (8, 5), kernel=kernel, gradient=gradient)
        for n, kernel in ((21, RBF(0.5)), (20, RBF(0.5)), (9, Polynomial(2)), (9, Cosine()))
        for gradient in (False, True)
    ),
]
_BASELINES = {
    **dict.fromkeys(_GENERAL, ("reference", "eager")),
    _MATRIX: similarity.MATRIX_BASELINES,
    _LOSS: regularizers.LOSS_BASELINES,
    _NARROW: similarity.PAIR_BASELINES,
    _RBF: similarity.RBF_BASELINES,
    _RBF_EVEN: similarity.RBF_BASELINES,
    FeatureWork("gram", 200, (8,)): ("blocked_mm",),
}
_ALL = [
    pytest.param(work, name, id=f"{work.operation}-{work.n}-{type(work.kernel).__name__}-{name}")
    for work, names in _BASELINES.items()
    for name in names
]
_QUICK = Settings(backend="reference", quick=True, compare=("eager",))


def _case(work, *names):
    return work.case(names, id="T", suite="similarity", title="t", reason="r")


def _outputs(work, name, features):
    contender = _case(work, *(() if name == "sparsekern" else (name,))).contender(name)
    reason = contender.missing_reason()
    if reason:
        pytest.skip(reason)
    return contender.outputs(contender.work(contender.prepared(features)))


def _error(work, outputs, expected):
    return gate.distance(_case(work).error, outputs, expected)


@pytest.mark.parametrize(("work", "name"), _ALL)
def test_every_contender_is_right(work, name):
    # torch_cka multiplies by float32 ones: it takes no other dtype.
    dtype = torch.float32 if name.startswith("torch_cka") else torch.float64
    features = work.inputs(dtype)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    if work == _RBF_EVEN and name == "ckatorch":
        bound = 1e-3  # its median is the lower of the two middle distances, not their mean
    assert _error(work, _outputs(work, name, features), work.oracle(features)) <= bound


def test_the_oracle_of_narrow_pairs_is_the_definition():
    features = _NARROW.inputs(torch.float64)
    assert _NARROW.feature_space
    reference = _outputs(_NARROW, "reference", features)
    assert _error(_NARROW, reference, _NARROW.oracle(features)) < 1e-12


def test_uncentred_eager_is_caught_at_an_offset():
    features = [x + 1e3 for x in _MATRIX.inputs(torch.float32)]
    expected = _MATRIX.oracle(features)
    bound = _case(_MATRIX).bounds["float32"]
    errors = {
        name: _error(_MATRIX, _outputs(_MATRIX, name, features), expected)
        for name in ("eager", "eager_centred", "reference")
    }
    assert errors["eager"] > bound
    # float32 means of an offset of 1e3 leave some error; sparsekern's float64 means do not.
    assert errors["eager_centred"] < errors["eager"]
    assert errors["reference"] <= bound


def _wrong_matrix(xs, centred):
    return torch.eye(len(xs)) + 1e-3


def _wrong_shape(xs, centred):
    return torch.ones(1)


def _nan(xs, centred):
    return torch.full((len(xs), len(xs)), float("nan"))


_TRUE = torch.ones(3, 3)


@pytest.mark.parametrize("broken", [_wrong_matrix, _wrong_shape, _nan])
def test_a_wrong_baseline_gets_no_ratio(monkeypatch, broken):
    monkeypatch.setattr("sparsekern.bench.baselines.eager_cka_matrix", broken)
    (case,) = runner.run([_case(_MATRIX, "eager")], _QUICK).cases
    ours, eager = case.rows
    assert (ours.status, eager.status) == ("ok", "wrong")
    assert eager.seconds is not None  # its time is still listed
    assert case.ratio(eager) is None
    assert "bound" in eager.note


def test_no_ratio_is_given_where_ours_is_wrong(monkeypatch):
    monkeypatch.setattr(FeatureWork, "sparsekern", lambda self, xs: torch.eye(3))
    monkeypatch.setattr(FeatureWork, "oracle", lambda self, xs: [_TRUE])
    monkeypatch.setattr("sparsekern.bench.baselines.eager_cka_matrix", lambda xs, centred: _TRUE)
    (case,) = runner.run([_case(_MATRIX, "eager")], _QUICK).cases
    ours, eager = case.rows
    assert (ours.status, eager.status) == ("wrong", "ok")
    assert case.ratio(eager) is None


def test_a_wrong_gradient_is_an_error():
    features = _LOSS.inputs(torch.float64)
    value, *gradients = _LOSS.oracle(features)
    assert _error(_LOSS, [value, *gradients], [value, *gradients]) == 0
    gradients[1] = 1.01 * gradients[1]
    assert _error(_LOSS, [value, *gradients], _LOSS.oracle(features)) > 1e-3


@pytest.mark.parametrize(
    "measure",
    [gate.largest_difference, gate.relative_distance, gate.value_and_gradient, gate.mismatches],
)
def test_nan_and_other_shapes_are_infinitely_far(measure):
    expected = [torch.ones(2), torch.ones(3)]
    assert gate.distance(measure, expected, expected) == 0
    nan = [torch.ones(2), torch.full((3,), float("nan"))]
    assert gate.distance(measure, nan, expected) > 0.5
    assert gate.distance(measure, nan[::-1], expected) == float("inf")
    assert gate.distance(measure, expected[:1], expected) == float("inf")


def test_mismatches_are_a_share():
    mask = torch.tensor([True, False, True, True])
    assert gate.mismatches([mask, ~mask], [mask, mask]) == 0.5


def test_an_absent_peer_is_named_as_absent(monkeypatch):
    peers.missing_reason.cache_clear()
    monkeypatch.setitem(peers.DISTRIBUTIONS, "torch_cka", "torch-cka-that-nobody-wrote")
    (case,) = runner.run(
        [_case(_MATRIX, "torch_cka_hsic")], Settings(backend="reference", quick=True)
    ).cases
    peers.missing_reason.cache_clear()
    row = case.rows[1]
    assert (row.status, row.seconds) == ("absent", None)
    assert row.note == "torch-cka-that-nobody-wrote is not installed"


def test_a_failing_baseline_is_reported_not_raised(monkeypatch):
    def fail(xs, centred):
        raise MemoryError("too large")

    monkeypatch.setattr("sparsekern.bench.baselines.eager_cka_matrix", fail)
    (case,) = runner.run([_case(_MATRIX, "eager")], _QUICK).cases
    assert (case.rows[1].status, case.rows[1].note) == ("failed", "MemoryError: too large")


def test_features_are_seeded_and_rotate_out_of_the_cache(monkeypatch):
    assert inputs.last_level_cache() >= 1 << 18
    monkeypatch.setattr(inputs, "last_level_cache", lambda: 1 << 20)
    work = FeatureWork("cka_matrix", 16, (4096,))
    first, *rest = inputs.copies(_case(work), torch.float32)
    assert (1 + len(rest)) * first[0].numel() * 4 >= 3 << 20
    assert torch.equal(first[0], work.inputs(torch.float32)[0])
    assert rest[0][0].data_ptr() != first[0].data_ptr()


def test_copies_keep_structure_layout_and_leaves():
    value = {"x": [torch.ones(2, 3).T.requires_grad_()], "n": 3, "mask": (torch.ones(2) > 0,)}
    copy = inputs.clone(value)
    assert copy["n"] == 3
    assert copy["x"][0].requires_grad
    assert copy["x"][0].is_leaf
    assert copy["x"][0].stride() == value["x"][0].stride()
    assert torch.equal(copy["mask"][0], value["mask"][0])
    assert len(list(inputs.tensors(value))) == 2
    assert inputs.double(value)["x"][0].dtype == torch.float64
    assert inputs.double(value)["mask"][0].dtype == torch.bool


def test_preparing_and_finishing_are_not_timed_and_other_work_is_not_checked():
    made = []

    def prepare(xs):
        made.append(len(xs))
        return xs[0].double()

    odd = Contender("odd", "odd", lambda x: x.sum(), prepare, finish=lambda x: [x], same_work=False)
    plain = _case(_MATRIX)
    case = dataclasses.replace(plain, contenders=(*plain.contenders, odd), most_copies=3)
    (result,) = runner.run([case], Settings(backend="reference", quick=True)).cases
    assert made == [3] * 3 + [3]  # three copies, and the small inputs of the overhead column
    row = result.rows[1]
    assert (row.status, row.error) == ("ok", None)
    assert row.seconds > 0
    assert result.ratio(row) > 0
