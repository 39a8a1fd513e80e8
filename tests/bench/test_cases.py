"""The registry: ids, selection, and operation counts against counting one by one."""

import itertools

import pytest

from sparsekern.bench import cases, contenders
from sparsekern.bench.cases import FeatureCase


def _count_triangle(rows, inner):
    return sum(2 for i in range(rows) for j in range(i + 1) for _ in range(inner))


def _tiny(operation, n, dims, **rest):
    return FeatureCase("T", "similarity", "t", "r", operation, n, dims, (), **rest)


def test_ids_are_unique_and_every_baseline_has_a_label():
    ids = [case.id for case in cases.CASES]
    assert len(set(ids)) == len(ids)
    for case in cases.CASES:
        assert case.suite in cases.SUITES
        assert set(case.baselines) <= set(contenders.LABELS)


def test_groups_cover_all_layers():
    for case in cases.CASES:
        if isinstance(case, FeatureCase) and case.operation == "cka_sum":
            assert sum(case.groups) == len(case.dims)


def test_flops_of_a_matrix_are_the_lower_triangles():
    assert _tiny("cka_matrix", 5, (7, 3)).flops == sum(_count_triangle(5, d) for d in (7, 3))


def test_flops_of_a_loss_add_one_full_product_per_layer():
    n, dims = 5, (7, 3)
    forward = sum(_count_triangle(n, d) for d in dims)
    backward = sum(2 for d in dims for _ in itertools.product(range(n), range(d), range(n)))
    assert _tiny("cka_sum", n, dims, groups=(2,)).flops == forward + backward


def test_flops_of_a_pair_are_those_of_the_cheaper_form():
    wide, narrow = _tiny("cka", 4, (9, 8)), _tiny("cka", 40, (3, 2))
    assert not wide.feature_space
    assert wide.flops == _count_triangle(4, 9) + _count_triangle(4, 8)
    assert narrow.feature_space
    cross = sum(2 for _ in itertools.product(range(3), range(40), range(2)))
    assert narrow.flops == _count_triangle(3, 40) + _count_triangle(2, 40) + cross


def test_bytes_count_each_pass_once():
    assert _tiny("cka_matrix", 5, (7, 3)).bytes(4) == 5 * 10 * 4
    assert _tiny("cka_sum", 5, (7, 3), groups=(2,)).bytes(4) == 3 * 5 * 10 * 4  # two in, one out


def test_a_family_selects_all_its_cases():
    assert [case.id for case in cases.select(names=["S2"])] == ["S2", "S2-imagenet"]
    assert [case.id for case in cases.select(names=["S2"], quick=True)] == ["S2"]
    assert {case.suite for case in cases.select(suite="similarity")} == {"similarity"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "masked"}, "--suite must be one of similarity, regularizers"),
        ({"names": ["S9"]}, "got 'S9'"),
        ({"suite": "regularizers", "names": ["S1"]}, "no case is left"),
    ],
)
def test_wrong_selections_say_what_to_change(arguments, message):
    with pytest.raises(ValueError, match=message):
        cases.select(**arguments)


def test_compare_takes_names_and_families():
    assert contenders.compare_names("torch_cka, authors") == [
        "torch_cka",
        "torch_cka_hsic",
        "authors",
    ]
    with pytest.raises(ValueError, match="got 'scipy'"):
        contenders.compare_names("scipy")
