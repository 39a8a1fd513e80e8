"""The table of rates: shipped, or tuned and kept in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sparsekern as sk
from sparsekern import cli, native
from sparsekern.ops.masked import choice, rates
from sparsekern.tuning import corrections, grid, measure

from ..conftest import compiled_only

LAYERS = (grid.Layer((2, 8), (4, 8)), grid.Layer((2, 4, 5, 5), (6, 2, 3, 3), 2, groups=2))
CLOSE = {"dense": [[5.0], [20.0]], "sparse": [[6.0], [5.0]]}  # the first is anybody's


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
    file.write_text(file.read_text().replace('"dense": 85', '"dense": -85'))
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
    monkeypatch.setattr(grid, "LAYERS", LAYERS)
    monkeypatch.setattr(grid, "_LEAST", 1)
    monkeypatch.setattr(grid, "_MOST", 1)
    assert cli.main(["tune", "--dry-run"]) == 0
    assert not file.exists()
    assert cli.main(["tune"]) == 0
    assert f"saved in {file}" in capsys.readouterr().out
    found = rates.tuned(native.cpu().isa(), sk.info().cpu.threads)
    assert all(number > 0 for number in (*found.float32[:-1], *found.float32.corrections))
    assert len(found.float32.corrections) == len(choice.CORRECTED)
    assert found.float16.corrections == ()
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
    monkeypatch.setattr(grid, "LAYERS", LAYERS)
    monkeypatch.setattr(grid, "SPARSITIES", (0.0, 0.5))
    monkeypatch.setattr(grid, "_LEAST", 1)
    monkeypatch.setattr(grid, "_MOST", 1)
    out = tmp_path / "grid.json"
    assert cli.main(["tune", "--check", "--dtype", "bfloat16", "--out", str(out)]) == 0
    found = grid.Grid.load(out)
    assert [(row.layer, row.part) for row in found.rows] == [
        (layer, part) for layer in LAYERS for part in grid.parts_of(layer)
    ]
    assert all(len(times) == 2 for row in found.rows for times in row.microseconds.values())
    assert (found.isa, found.dtype) == (native.cpu().isa(), "bfloat16")
    assert "of 14 within 1.05 of the fastest" in capsys.readouterr().out
    assert not file.exists()
    found.save(out)
    assert grid.Grid.load(out) == found
    # Again, where that does not tell the faster one: times are added.
    rows = tuple(dataclasses.replace(row, microseconds=CLOSE) for row in found.rows)
    dataclasses.replace(found, rows=rows).save(out)
    assert cli.main(["tune", "--check", "--dtype", "bfloat16", "--out", str(out)]) == 0
    for row in grid.Grid.load(out).rows:
        assert [len(times) for times in row.microseconds["sparse"]] == [2, 1]
    assert cli.main(["tune", "--check", "--dtype", "float32", "--out", str(out)]) == 2
    assert "was measured with" in capsys.readouterr().err


def test_losses_are_of_the_choice_against_the_fastest() -> None:
    layer = grid.Layer((1, 1024), (1024, 1024))
    times = {"dense": [[10.0], [40.0]], "sparse": [[20.0], [5.0]]}
    measured = grid.Grid(
        "", "avx2", 2, "float32", (0.0, 0.99), (grid.Row(layer, "forward", times),)
    )
    own = rates.DEFAULTS["avx2"].float32
    assert [(loss.chosen, loss.ratio) for loss in measured.losses(own)] == [
        ("dense", 1),
        ("sparse", 1),
    ]
    # Of several times the middle of the ratios counts, not that of the times.
    times = {"dense": [[10.0, 90.0, 10.0], [5.0]], "sparse": [[5.0, 30.0, 9.0], [10.0]]}
    swapped = grid.Grid("", "avx2", 2, "float32", (0.0, 0.99), (grid.Row(layer, "forward", times),))
    assert [loss.ratio for loss in swapped.losses(own)] == [2, 2]
    assert "99%, forward: sparse 2.00" in str(list(swapped.losses(own))[1])


def test_a_correction_is_the_one_that_loses_least() -> None:
    # Measured ratios half as large as modelled ones: a choice at modelled 1.5 is set right.
    assert 1 / 3 < corrections.best([(0.5, 1.0), (0.75, 1.5), (1.5, 3.0)]) < 1 / 1.5
    assert corrections.best([(0.5, 0.5), (2.0, 2.0)]) == pytest.approx(1)
    # Where both cannot be had, the one that loses less.
    assert corrections.best([(0.5, 1.0), (1.1, 0.9)]) < 1
    assert corrections.best([(0.9, 1.0), (2.0, 0.9)]) > 1


def test_corrections_are_of_the_part_and_kind_that_they_name() -> None:
    layer = grid.Layer((1, 1024), (1024, 1024))
    own = rates.DEFAULTS["avx2"].float32._replace(corrections=())
    nnz = layer.kept(0.8)
    modelled = layer.modelled("input", nnz, torch.float32, 2, own)
    wrong = {"dense": [[2.0 if modelled < 1 else 0.5]], "sparse": [[1.0]]}
    row = grid.Row(layer, "input", wrong)
    fitted = corrections.fit([grid.Grid("", "avx2", 2, "float32", (0.8,), (row,))], own)
    assert len(fitted) == len(choice.CORRECTED) == rates.CORRECTIONS
    changed = [key for key, factor in zip(choice.CORRECTED, fitted, strict=True) if factor != 1]
    assert changed == [("input", "1")]
    forced = tuple(1e9 if key == ("input", "1") else 1.0 for key in choice.CORRECTED)
    for part in choice.PARTS:
        before = layer.chosen(part, nnz, torch.float32, 2, own)
        after = layer.chosen(part, nnz, torch.float32, 2, own._replace(corrections=forced))
        assert after == ("sparse" if part == "input" else before)


def test_kinds_of_layers() -> None:
    assert set(choice.CORRECTED) == {
        (part, layer.kind(torch.float32))
        for layer in grid.LAYERS
        for part in grid.parts_of(layer)
        if layer.kind(torch.float32) is not None
    }


def test_corrections_of_another_number_are_passed_over(file: Path) -> None:
    short = rates.DEFAULTS["avx2"].float32._replace(corrections=(1.0, 2.0))
    rates.save(dataclasses.replace(rates.DEFAULTS["avx2"], float32=short), "avx2", 2)
    with pytest.warns(RuntimeWarning, match="must be 49 corrections, got 2"):
        assert rates.rates("avx2", 2) is rates.DEFAULTS["avx2"]
