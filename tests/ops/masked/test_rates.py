"""The table of rates: shipped, or tuned and kept in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsekern as sk
from sparsekern import cli, native
from sparsekern.ops.masked import choice, rates
from sparsekern.tuning import grid, measure

from ..conftest import compiled_only


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "folder" / "rates.json"
    monkeypatch.setenv(rates.VARIABLE, str(path))
    rates.rates.cache_clear()
    yield path
    rates.rates.cache_clear()


def test_shipped_rates_without_a_file() -> None:
    assert rates.rates("avx2", 2) is rates.DEFAULTS["avx2"]
    assert rates.rates("an ISA of later years", 2) in rates.DEFAULTS.values()


def test_saved_rates_are_for_their_isa_and_threads(file: Path) -> None:
    found = rates.DEFAULTS["portable"]
    assert rates.save(found, "avx512", 3) == file
    rates.save(rates.DEFAULTS["avx2"], "avx2", 3)
    assert rates.rates("avx512", 3) == found
    assert rates.rates("avx2", 3) == rates.DEFAULTS["avx2"]
    assert rates.rates("avx512", 4) is rates.DEFAULTS["avx512"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "rates": 3}', '{"format": 99}'])
def test_a_damaged_file_is_passed_over_and_replaced(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.warns(RuntimeWarning, match="is passed over"):
        assert rates.rates("avx2", 2) is rates.DEFAULTS["avx2"]
    rates.save(rates.DEFAULTS["portable"], "avx2", 2)
    assert rates.rates("avx2", 2) == rates.DEFAULTS["portable"]


def test_rates_that_make_no_sense_are_passed_over(file: Path) -> None:
    rates.save(rates.DEFAULTS["avx2"], "avx2", 2)
    file.write_text(file.read_text().replace("85", "-85"))
    with pytest.warns(RuntimeWarning, match="must be numbers above 0"):
        assert rates.rates("avx2", 2) is rates.DEFAULTS["avx2"]


def test_the_place_is_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(rates.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rates.cache_file() == tmp_path / "sparsekern" / "rates.json"


@compiled_only
def test_tune_measures_saves_and_is_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "_LEAST", 1)
    monkeypatch.setattr(measure, "_MOST", 1)
    assert cli.main(["tune", "--dry-run"]) == 0
    assert not file.exists()
    assert cli.main(["tune"]) == 0
    assert f"saved in {file}" in capsys.readouterr().out
    found = rates.tuned(native.cpu().isa(), sk.info().cpu.threads)
    assert all(number > 0 for number in found.float32)
    assert str(file) in str(sk.info())
    assert cli.main(["tune", "--threads", "0"]) == 2
    assert cli.main(["tune", "--out", str(file)]) == 2


@compiled_only
def test_a_check_times_a_grid_and_keeps_it(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = (grid.Layer((2, 8), (4, 8)), grid.Layer((2, 4, 5, 5), (6, 2, 3, 3), 2, groups=2))
    monkeypatch.setattr(grid, "LAYERS", layers)
    monkeypatch.setattr(grid, "SPARSITIES", (0.0, 0.5))
    monkeypatch.setattr(grid, "_LEAST", 1)
    monkeypatch.setattr(grid, "_MOST", 1)
    out = tmp_path / "grid.json"
    assert cli.main(["tune", "--check", "--dtype", "bfloat16", "--out", str(out)]) == 0
    found = grid.Grid.load(out)
    assert [(row.layer, row.part) for row in found.rows] == [
        (layer, part) for layer in layers for part in choice.PARTS
    ]
    assert all(len(times) == 2 for row in found.rows for times in row.microseconds.values())
    assert (found.isa, found.dtype) == (native.cpu().isa(), "bfloat16")
    assert "of 12 within 1.05 of the fastest" in capsys.readouterr().out
    assert not file.exists()
    found.save(out)
    assert grid.Grid.load(out) == found


def test_losses_are_of_the_choice_against_the_fastest() -> None:
    layer = grid.Layer((1, 1024), (1024, 1024))
    row = grid.Row(layer, "forward", {"dense": [10.0, 40.0], "sparse": [20.0, 5.0]})
    measured = grid.Grid("", "avx2", 2, "float32", (0.0, 0.99), (row,))
    own = rates.DEFAULTS["avx2"].float32
    assert [(loss.chosen, loss.ratio) for loss in measured.losses(own)] == [
        ("dense", 1),
        ("sparse", 1),
    ]
    swapped = grid.Row(layer, "forward", {"dense": [10.0, 5.0], "sparse": [5.0, 10.0]})
    measured = grid.Grid("", "avx2", 2, "float32", (0.0, 0.99), (swapped,))
    assert [loss.ratio for loss in measured.losses(own)] == [2, 2]
    assert "99%, forward: sparse 2.00" in str(list(measured.losses(own))[1])
