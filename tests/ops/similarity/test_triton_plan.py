"""What the Triton back end launches: grids, splits and bytes from sizes alone, without Triton."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from sparsekern.ops.similarity.triton import configurations, plan
from sparsekern.ops.similarity.triton.device import matrix_operands
from sparsekern.ops.similarity.triton.plan import Sizes
from sparsekern.ops.similarity.triton.state import State, state_bytes

SM = 132
H200 = "cuda:9.0"
RESNET18 = (65536,) * 5 + (32768,) * 5 + (16384,) * 5 + (8192,) * 5
TABLE_PIECE = 64


@pytest.fixture(autouse=True)
def backend() -> None:
    """Once: nothing here depends on the back end in use."""


def sizes(n: int, dims: tuple[int, ...], element: int = 4, operands: str = "ieee") -> Sizes:
    return Sizes(n, dims, element, operands)


def names(launches: list[plan.Launch]) -> list[str]:
    return [launch.kernel for launch in launches]


@pytest.mark.parametrize("target", [1, 7, 132, 1056])
@pytest.mark.parametrize("dims", [(1,), (5, 0, 300), RESNET18, (802816, 64)], ids=str)
def test_split_covers_every_column(dims: tuple[int, ...], target: int) -> None:
    width, splits = plan.split_columns(dims, 64, target)
    assert width % 64 == 0
    assert splits == tuple(-(-d // width) for d in dims)
    assert sum(splits) <= max(target, sum(d > 0 for d in dims))
    if width > 64:  # the least such width
        assert sum(-(-d // (width - 64)) for d in dims) > target


def test_one_wide_gram_matrix_fills_the_device() -> None:
    how = plan.gram_plan(sizes(256, (65536,), 2, "bf16"), H200, SM, plan.LINEAR)
    assert how.form == plan.COLUMNS
    assert 0.9 * SM <= how.pieces <= SM


@pytest.mark.parametrize("n", [4, 8, 16, 20, 64, 128, 200, 256, 300, 4096])
@pytest.mark.parametrize("operands", ["ieee", "tf32x3", "tf32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("device", ["cuda:8.0", H200, "cuda:10.0", "cuda:12.0", "hip", "xpu"])
def test_every_size_has_a_plan(n: int, operands: str, device: str) -> None:
    element = {"bf16": 2, "fp16": 2, "fp64": 8}.get(operands, 4)
    call = sizes(n, (100, 7000), element, operands)
    how = plan.gram_plan(call, device, SM, plan.LINEAR)
    assert how.side >= min(n, how.rows)
    assert how.form != plan.COLUMNS or how.side >= n
    back = plan.product_plan(call, how, device)
    assert back.rows * back.row_blocks >= n


def test_the_forward_pass_of_a_whole_network_is_four_launches() -> None:
    call = sizes(256, RESNET18, 2, "bf16")
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    launches = plan.compare_launches(call, how, plan.LINEAR, True, False, TABLE_PIECE)
    table, gram, reduce, inner = names(launches)[-4:]
    assert (table, gram, reduce, inner) == (
        "fill_table",
        "gram_columns",
        "reduce_rows",
        "inner_products",
    )
    assert names(launches)[:-4] == ["fill_table"]  # 81 numbers, 64 at a time
    (features,) = [launch for launch in launches if launch.kernel == "gram_columns"]
    assert features.read == 256 * sum(RESNET18) * 2  # every feature once
    assert features.grid[0] <= SM
    # What is not a feature: partial Gram matrices, whole ones, means.
    rest = sum(launch.read + launch.written for launch in launches) - features.read
    assert rest <= 0.5 * features.read


@pytest.mark.parametrize("n", [8, 16, 64, 256])
def test_the_backward_pass_reads_once_and_writes_once(n: int) -> None:
    call = sizes(n, (802816, 200704, 100352), 4, "tf32")
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    back = plan.product_plan(call, how, H200)
    launches = plan.compare_grad_launches(call, back, False, True, TABLE_PIECE)
    assert names(launches) == ["fill_table", "pair_weights", "combine_row", back.form]
    last = launches[-1]
    assert last.written == call.bytes_of_features
    assert last.read <= 1.01 * call.bytes_of_features


def test_large_gram_matrices_make_each_product_once() -> None:
    call = sizes(8192, (4096,), 2, "bf16")
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    assert how.form == plan.TILES
    assert how.mirror
    launches = plan.gram_launches(call, how, plan.LINEAR, plan.NO_CENTRING, False, False)
    assert names(launches) == ["gram_tiles"]
    assert launches[0].grid == (64 * 65 // 2,)


def test_few_tiles_are_split_along_the_features() -> None:
    call = sizes(300, (1_000_000,))
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    assert not how.mirror
    assert how.pieces * how.triangle >= SM


def test_the_median_adds_its_passes() -> None:
    for operands, passes in (("ieee", 4), ("fp64", 8)):
        call = sizes(64, (100, 100), 4, operands)
        how = plan.gram_plan(call, H200, SM, plan.RBF)
        found = names(plan.compare_launches(call, how, plan.RBF, True, True, TABLE_PIECE))
        assert found.count("count_digits") == passes
        assert found.count("reduce_rows") == 2


def test_operands_follow_the_matmul_precision() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for precision, expected in (("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(precision)
            assert matrix_operands(torch.float32, H200, False) == expected
            assert matrix_operands(torch.float32, "hip", False) == "ieee"
            assert matrix_operands(torch.float64, H200, False) == "fp64"
            assert matrix_operands(torch.bfloat16, H200, False) == "bf16"
            assert matrix_operands(torch.float16, H200, False) == "tf32"
            assert matrix_operands(torch.float16, H200, True) == "fp16"
    finally:
        torch.set_float32_matmul_precision(before)


def test_state_holds_its_views() -> None:
    x = torch.empty(9, 5)
    state = State.allocate(x, (5, 70))
    assert state.memory.numel() == state_bytes(9, (5, 70), torch.float32, True)
    assert state.products.numel() == 2 * 81
    assert state.means.numel() == 75
    assert state.row_sums.numel() == 18
    assert State.allocate(x, (5,), False).products.numel() == 0


def test_other_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(configurations.VARIABLE, str(tmp_path / "own.json"))
    (tmp_path / "own.json").write_text("{}")
    configurations._table.cache_clear()
    configurations.configuration.cache_clear()
    try:
        with pytest.raises(ValueError, match='expected a "default" entry'):
            configurations.configuration(H200, "gram_few", "ieee", 8)
        own = {"default": {"gram_few": {"any": {"8": {"block": 32, "warps": 1, "stages": 1}}}}}
        (tmp_path / "own.json").write_text(json.dumps(own))
        found = configurations.configuration(H200, "gram_few", "ieee", 8)
        assert found == configurations.Configuration(32, 1, 1)
        with pytest.raises(KeyError, match="no launch configuration for gram_tiles"):
            configurations.configuration(H200, "gram_tiles", "ieee", 128)
    finally:
        monkeypatch.undo()
        configurations._table.cache_clear()
        configurations.configuration.cache_clear()


def test_a_device_without_its_own_configurations_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configurations.configuration.cache_clear()
    configurations._log_fallback.cache_clear()
    with caplog.at_level(logging.INFO, logger=configurations.__name__):
        for rows in (8, 16):
            configurations.configuration("cuda:8.9", "gram_few", "ieee", rows)
    assert [record.getMessage() for record in caplog.records] == [
        "no launch configurations for cuda:8.9: the default ones are used"
    ]
