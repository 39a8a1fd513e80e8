"""The registry: ids, selection, and operation counts against counting one by one."""

import itertools
import re
from pathlib import Path

import pytest

from sparsekern.bench import cases, runner
from sparsekern.bench.case import OURS, Case
from sparsekern.bench.features import FeatureWork
from sparsekern.bench.settings import Settings


def _count_triangle(rows, inner):
    return sum(2 for i in range(rows) for j in range(i + 1) for _ in range(inner))


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_says_what_the_runner_needs(quick):
    registry = cases.registry(quick)
    assert len({case.id for case in registry}) == len(registry)
    labels = {}
    for case in registry:
        assert case.suite in cases.suites()
        assert case.contenders[0].name == OURS
        names = [contender.name for contender in case.contenders]
        assert len(set(names)) == len(names)
        assert case.title
        assert case.reason
        for contender in case.contenders:
            labels.setdefault(contender.name, contender.label)
            assert labels[contender.name] == contender.label  # one name, one thing
        if isinstance(case, Case):
            assert set(case.bounds) >= set(case.dtypes)


def test_quick_cases_are_among_the_full_ones():
    assert {case.id for case in cases.registry(True)} <= set(cases.case_order())


def test_points_of_a_curve_have_one_predicted_order():
    curves = {}
    for case in cases.registry():
        if case.series is not None:
            curves.setdefault(case.series.family, []).append(case.series)
    for points in curves.values():
        assert len({(point.x_name, point.order) for point in points}) == 1
        assert len({point.x for point in points}) == len(points)


def test_flops_of_a_matrix_are_the_lower_triangles_and_one_product_per_pair():
    grams = sum(_count_triangle(5, d) for d in (7, 3))
    pair = _count_triangle(5, 1)
    assert FeatureWork("cka_matrix", 5, (7, 3)).cost.operations == grams + 3 * pair
    two_lists = FeatureWork("cka_matrix", 5, (7, 3), groups=(1, 1))
    assert two_lists.cost.operations == grams + pair


def test_flops_of_a_loss_add_one_full_product_per_layer():
    n, dims = 5, (7, 3)
    forward = sum(_count_triangle(n, d) for d in dims)
    backward = sum(2 for d in dims for _ in itertools.product(range(n), range(d), range(n)))
    assert FeatureWork("cka_sum", n, dims, (2,)).cost.operations == forward + backward


def test_flops_of_a_pair_are_those_of_the_cheaper_form():
    wide, narrow = FeatureWork("cka", 4, (9, 8)), FeatureWork("cka", 40, (3, 2))
    assert not wide.feature_space
    assert wide.cost.operations == _count_triangle(4, 9) + _count_triangle(4, 8)
    assert narrow.feature_space
    cross = sum(2 for _ in itertools.product(range(3), range(40), range(2)))
    assert narrow.cost.operations == _count_triangle(3, 40) + _count_triangle(2, 40) + cross


def test_bytes_count_each_pass_once():
    assert FeatureWork("cka_matrix", 5, (7, 3)).cost.bytes(4) == 5 * 10 * 4
    loss = FeatureWork("cka_sum", 5, (7, 3), (2,))
    assert loss.cost.bytes(4) == 3 * 5 * 10 * 4  # two in, one out


def test_a_family_selects_all_its_cases():
    assert [case.id for case in cases.select(names=["S2"])] == ["S2", "S2-imagenet"]
    assert [case.id for case in cases.select(names=["S2"], quick=True)] == ["S2"]
    assert {case.suite for case in cases.select(suite="similarity")} == {"similarity"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "no-such-suite"}, "--suite must be among similarity, regularizers"),
        ({"names": ["S9"]}, "got 'S9'"),
        ({"suite": "regularizers", "names": ["S1"]}, "no case is left"),
    ],
)
def test_wrong_selections_say_what_to_change(arguments, message):
    with pytest.raises(ValueError, match=message):
        cases.select(**arguments)


def test_compare_takes_names_and_families():
    assert cases.compare_names("torch_cka, authors") == (
        "torch_cka",
        "torch_cka_hsic",
        "authors",
    )
    with pytest.raises(ValueError, match="got 'nobody'"):
        cases.compare_names("nobody")


def test_the_example_of_the_documentation_is_a_family():
    text = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    module = {}
    exec(compile(code, "docs/benchmarking.md", "exec"), module)
    (case,) = module["cases"](quick=True)
    settings = Settings(backend="reference", quick=True)
    (result,) = runner.run([case], settings).cases
    assert [(row.name, row.status) for row in result.rows] == [
        ("sparsekern", "ok"),
        ("torch_mm", "ok"),
    ]
    assert result.rows[0].host_seconds > 0
    assert result.floor_seconds > 0
