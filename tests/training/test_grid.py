"""sparsekern grid: its cells, which are done, several processes, and being stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sparsekern.cli import main
from sparsekern.training.catalogue import METHODS
from sparsekern.training.grid import cells

from .test_train import without_times

TINY = ["--width", "4", "--epochs", "2", "--seeds", "2"]


@pytest.fixture
def grid(tmp_path):
    def run(*options, out=tmp_path / "grid"):
        return main(["grid", "--out", str(out), *TINY, *options])

    return run


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("sparsekern.training.reporting.command._pictures", lambda *_: None)


def test_the_grid_is_methods_by_sparsities_by_variants():
    names = [cell.name for cell in cells.all_cells()]
    assert len(names) == len(set(names)) == 9 * 4 * 3 + 2
    for method in METHODS:
        if method != "dense":
            for sparsity in ("0.9", "0.95", "0.98", "0.99"):
                for variant in ("plain", "ckasr", "ap"):
                    assert f"{method}-{sparsity}-{variant}" in names
    assert [cells.cell_named(name).name for name in names] == names


def test_cells_train_what_their_names_say():
    cell = cells.cell_named("gmp-0.98-ckasr")
    recipe = {"epochs": 7, "options": {"lth": {"rounds": 3}}}
    settings = cell.settings(recipe, {"seeds": 5, "threads": 1})
    assert (settings.method, settings.sparsity, settings.variants) == ("gmp", 0.98, ["ckasr"])
    assert (settings.seeds, settings.epochs, settings.options) == (5, 7, {})
    assert cells.cell_named("lth-0.9-ap").settings(recipe, {}).options == {"lth": {"rounds": 3}}
    assert cells.cell_named("lth-0.9-ap").settings(recipe, {}).variants == ["ap"]
    assert cells.cell_named("dense-0-plain").settings(recipe, {}).variants == ["none"]


def test_cells_are_trained_in_processes_reported_and_skipped_when_done(grid, tmp_path, capsys):
    assert grid("--cell", "rst-0.9-plain", "--cell", "rst-0.9-ckasr", "--jobs", "2") == 0
    output = capsys.readouterr().out
    assert "rst-0.9-plain: accuracy" in output
    out = tmp_path / "grid"
    assert "RST + CKA-SR" in (out / "report.md").read_text()
    assert (out / "digits-resnet8-accuracy.png").exists()
    before = (out / "rst-0.9-plain" / "results.jsonl").stat().st_mtime_ns
    assert grid("--cell", "rst-0.9-plain", "--list") == 0
    assert capsys.readouterr().out == "done  rst-0.9-plain\n"
    assert grid("--cell", "rst-0.9-plain", "--cell", "rst-0.9-ckasr") == 0
    assert "2 of 2 cells are done already" in capsys.readouterr().out
    assert (out / "rst-0.9-plain" / "results.jsonl").stat().st_mtime_ns == before
    assert grid("--cell", "rst-0.9-plain", "--epochs", "3") == 2
    assert "was made with epochs 2, and now it is 3" in capsys.readouterr().err


def test_a_cell_is_the_training_of_its_settings(grid, train, tmp_path, no_pictures):
    assert grid("--cell", "set-0.9-plain") == 0
    options = "--recipe quick --method set --sparsity 0.9 --width 4 --epochs 2 --seeds 2"
    assert train(*options.split(), "--threads", 1, "--out", tmp_path / "alone") == 0
    assert without_times(tmp_path / "grid" / "set-0.9-plain") == without_times(tmp_path / "alone")


def test_stopped_and_gone_on_with_is_the_same(grid, tmp_path, no_pictures):
    cell = ["--cell", "rigl-0.9-plain", "--epochs", "30", "--seeds", "1"]
    assert grid(*cell, out=tmp_path / "whole") == 0
    out = tmp_path / "parts"
    command = [sys.executable, "-m", "sparsekern", "grid", "--out", str(out), *TINY, *cell]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    checkpoint, deadline = out / "rigl-0.9-plain" / "checkpoint.pt", time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "The same command goes on" in output
    done = without_times(out / "rigl-0.9-plain")
    assert len(done) < 30
    assert grid(*cell, out=out) == 0
    expected = without_times(tmp_path / "whole" / "rigl-0.9-plain")
    assert without_times(out / "rigl-0.9-plain") == expected


def test_a_cell_that_fails_is_named_and_the_others_go_on(grid, tmp_path, capsys, no_pictures):
    out = tmp_path / "grid"
    out.mkdir()
    (out / "rst-0.9-plain").write_text("in the way of a folder")
    assert grid("--cell", "rst-0.9-plain", "--cell", "snip-0.9-plain", "--jobs", "1") == 1
    output = capsys.readouterr().out
    assert "rst-0.9-plain failed" in output
    assert "cannot be made" in output
    assert "snip-0.9-plain: accuracy" in output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--cell", "gmp"], "--cell must be METHOD-SPARSITY-VARIANT such as gmp-0.95-ckasr"),
        (["--cell", "gmp-2-plain"], "--cell must be METHOD"),
        (["--cell", "gmp-0.9-best"], "--cell must be METHOD"),
        (["--method", "magic"], "--method must be one of art, dense"),
        (["--sparsity", "0.5"], "--sparsity must be one of 0.0, 0.9, 0.95"),
        (["--variant", "best"], "--variant must be one of ap, ckasr, plain"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--recipe", "best"], "--recipe must be a file"),
    ],
)
def test_wrong_options_are_one_line(options, told, grid, tmp_path, capsys):
    assert grid(*options) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_list_shows_what_is_begun(grid, tmp_path, capsys, no_pictures):
    assert grid("--cell", "rst-0.9-plain") == 0
    results = tmp_path / "grid" / "rst-0.9-plain" / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(line for line in lines if json.loads(line)["seed"] == 0))
    capsys.readouterr()
    assert grid("--method", "rst", "--sparsity", "0.9", "--list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "begun rst-0.9-plain",
        "open  rst-0.9-ckasr",
        "open  rst-0.9-ap",
    ]
