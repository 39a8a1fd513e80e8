"""What the Triton back end launches: grids, splits and bytes from sizes alone, without Triton."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsekern.ops.similarity.triton import plan
from sparsekern.ops.similarity.triton.plan import Sizes
from sparsekern.ops.similarity.triton.state import State, state_bytes
from sparsekern.ops.tiled import configurations
from sparsekern.ops.tiled.device import matrix_operands
from sparsekern.ops.tiled.grids import Launch

SM = 132
H200 = "cuda:9.0"
RESNET18 = (65536,) * 5 + (32768,) * 5 + (16384,) * 5 + (8192,) * 5
TABLE_PIECE = 256


@pytest.fixture(autouse=True)
def backend() -> None:
    """Once: nothing here depends on the back end in use."""


def sizes(n: int, dims: tuple[int, ...], element: int = 4, operands: str = "ieee") -> Sizes:
    return Sizes(n, dims, element, operands)


def names(launches: list[Launch]) -> list[str]:
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
    assert how.form == plan.PLAIN
    assert 0.9 * SM <= how.pieces <= SM


@pytest.mark.parametrize("n", [4, 8, 16, 20, 64, 128, 200, 256, 300, 4096])
@pytest.mark.parametrize("operands", ["ieee", "tf32x3", "tf32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("device", ["cuda:8.0", H200, "cuda:10.0", "cuda:12.0", "hip", "xpu"])
def test_every_size_has_a_plan(n: int, operands: str, device: str) -> None:
    element = {"bf16": 2, "fp16": 2, "fp64": 8}.get(operands, 4)
    call = sizes(n, (100, 7000), element, operands)
    how = plan.gram_plan(call, device, SM, plan.LINEAR)
    assert how.side >= min(n, how.rows)
    assert how.form not in (plan.COLUMNS, plan.PLAIN) or how.side >= n
    back = plan.product_plan(call, how, device)
    assert back.rows * back.row_blocks >= n


def test_the_forward_pass_of_a_whole_network_is_four_launches() -> None:
    call = sizes(256, RESNET18, 2, "bf16")
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    launches = plan.compare_launches(call, how, H200, plan.LINEAR, True, False, TABLE_PIECE)
    assert names(launches) == ["fill_table", "gram_plain", "reduce_rows", "inner_products"]
    (features,) = [launch for launch in launches if launch.kernel == "gram_plain"]
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


@pytest.mark.parametrize("n", [100, 129, 200, 256])
@pytest.mark.parametrize(
    ("operands", "element"), [("ieee", 4), ("tf32x3", 4), ("tf32", 4), ("tf32", 2), ("bf16", 2)]
)
def test_every_feature_comes_from_memory_once(n: int, operands: str, element: int) -> None:
    call = sizes(n, RESNET18, element, operands)
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    launches = plan.gram_launches(call, how, plan.LINEAR, plan.U_CENTRING, True, False)
    assert names(launches) == [how.form, "reduce_rows"]  # no pass for the means before
    assert launches[0].read == call.bytes_of_features
    three = n > 128 and operands != "bf16" and (operands, element) != ("tf32", 4)
    plain = operands == "bf16" or (operands, element) == ("tf32", 4)
    assert how.form == (plan.APART if three else plan.PLAIN if plain else plan.COLUMNS)
    # Where the registers hold one tile of three, two programs find them in the cache.
    assert launches[0].again == (2 * call.bytes_of_features if three else 0)
    assert launches[0].grid == ((3 if three else 1) * how.pieces,)
    if three:
        assert launches[0].grid[0] >= 3 * SM
        assert launches[0].written <= 0.16 * launches[0].read * 4 / element


def test_large_gram_matrices_make_each_product_once() -> None:
    call = sizes(8192, (4096,), 2, "bf16")
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    assert how.form == plan.TILES
    assert how.mirror
    launches = plan.gram_launches(call, how, plan.LINEAR, plan.NO_CENTRING, False, False)
    assert names(launches) == ["gram_tiles"]
    assert launches[0].grid == (64 * 65 // 2,)


@pytest.mark.parametrize("n", [4096, 8192, 16384])
def test_wide_tiles_leave_no_program_idle(n: int) -> None:
    call = sizes(n, (4096,), 2, "bf16")
    how = plan.gram_plan(call, H200, SM, plan.LINEAR, center=False)
    assert how.form == plan.MIRRORED
    launches = plan.gram_launches(call, how, plan.LINEAR, plan.NO_CENTRING, False, False)
    assert names(launches) == ["gram_mirrored"]
    halves = how.programs - how.wide
    assert launches[0].grid == (how.wide + halves,)
    products = (how.wide + halves / 2) * 128 * 256  # of samples: more than half of n²
    assert products <= (0.52 if n == 4096 else 0.51) * n * n
    rounds = (how.wide + halves / 2) / SM
    assert -(-rounds // 1) <= 1.03 * rounds


def test_few_tiles_are_split_along_the_features() -> None:
    call = sizes(300, (1_000_000,))
    how = plan.gram_plan(call, H200, SM, plan.LINEAR)
    assert not how.mirror
    assert how.pieces * how.triangle >= SM


def test_the_median_adds_its_passes() -> None:
    for operands, passes in (("ieee", 4), ("fp64", 8)):
        call = sizes(64, (100, 100), 4, operands)
        how = plan.gram_plan(call, H200, SM, plan.RBF)
        found = names(plan.compare_launches(call, how, H200, plan.RBF, True, True, TABLE_PIECE))
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


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of tuned configurations that is not there yet."""
    monkeypatch.setenv(configurations.VARIABLE, str(tmp_path / "own" / "launches.json"))
    configurations.forget()
    yield tmp_path / "own" / "launches.json"
    monkeypatch.undo()
    configurations.forget()


def test_tuned_configurations_go_first(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("gram_columns", "tf32", 64)
    shipped = configurations.configuration(H200, *key)
    tuned = configurations.Configuration(32, 2, 1)
    assert tuned != shipped
    assert configurations.save(H200, {key: tuned}) == own_file
    assert configurations.tuned_classes() == [H200]
    assert configurations.configuration(H200, *key) == tuned
    assert configurations.configuration("cuda:8.0", *key) == shipped
    assert configurations.configuration(H200, "gram_few", "ieee", 8).block == 128  # the others stay
    configurations.save("cuda:8.0", {})
    assert configurations.tuned_classes() == ["cuda:8.0", H200]
    with configurations.overriding({key: configurations.Configuration(16, 1, 1)}):
        assert configurations.configuration(H200, *key).block == 16
    assert configurations.configuration(H200, *key) == tuned
    monkeypatch.setenv(configurations.VARIABLE, configurations.SHIPPED)
    configurations.forget()
    assert configurations.configuration(H200, *key) == shipped
    with pytest.raises(ValueError, match="there is no file to keep tuned entries in"):
        configurations.save(H200, {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "no attribute 'values'"),
        ({"block": 48, "warps": 4, "stages": 1}, "block must be a power of two, got 48"),
        ({"block": 16, "warps": 0, "stages": 1}, "warps must be an integer above 0, got 0"),
        ({"block": 16, "warps": 4}, "missing 1 required positional argument: 'stages'"),
    ],
    ids=["no JSON", "no table", "block", "warps", "stages"],
)
def test_a_file_that_is_not_understood_is_passed_over(
    own_file: Path, content: str | dict[str, int], reason: str
) -> None:
    own_file.parent.mkdir()
    text = content
    if isinstance(content, dict):
        text = json.dumps({H200: {"gram_few": {"ieee": {"8": content}}}})
    own_file.write_text(str(text))
    with pytest.warns(RuntimeWarning, match=f"is passed over, and the shipped .*: .*{reason}"):
        found = configurations.configuration(H200, "gram_few", "ieee", 8)
    assert found.block == 128


def test_a_kernel_without_configurations_is_an_error() -> None:
    with pytest.raises(KeyError, match="no launch configuration for gram_tiles, ieee, 7 rows"):
        configurations.configuration(H200, "gram_tiles", "ieee", 7)


def test_a_device_without_its_own_configurations_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configurations.configuration.cache_clear()
    configurations._log_fallback.cache_clear()
    with caplog.at_level(logging.INFO, logger=configurations.__name__):
        for rows in (8, 16):
            configurations.configuration("cuda:8.9", "gram_few", "ieee", rows)
            configurations.configuration(H200, "gram_few", "ieee", rows)  # has some of its own
    assert [record.getMessage() for record in caplog.records] == [
        "no launch configurations for cuda:8.9: the default ones are used"
    ]
