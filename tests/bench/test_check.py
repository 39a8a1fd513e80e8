"""``--check``: ratios against a committed file, and when they are not compared."""

import argparse
import dataclasses

import pytest

from sparsekern.bench import cases, check, command, machine, results, runner
from sparsekern.bench.results import Results
from sparsekern.bench.settings import Settings

_SETTINGS = Settings(backend="reference", quick=True, compare=("eager",), extras=False)


@pytest.fixture(scope="module")
def measured():
    return runner.run(cases.select(names=["gram-64"], quick=True), _SETTINGS)


def _file(tmp_path, measured, ratio=1.0, **machine_changes):
    """A committed file in which every baseline took ``ratio`` times what it really did."""
    (case,) = measured.cases
    rows = [dataclasses.replace(row) for row in case.rows]
    for row in rows[1:]:
        row.seconds *= ratio
    committed = Results(
        measured.machine | machine_changes,
        measured.settings,
        measured.floor,
        [dataclasses.replace(case, rows=rows)],
    )
    path = tmp_path / "committed.json"
    path.write_text(results.to_json(committed), encoding="utf-8")
    return path


def _run(path, *words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    words = ("--check", str(path), "--case", "gram-64", "--backend", "reference", *words)
    return command.run(parser.parse_args(words))


def test_the_same_ratios_pass(tmp_path, measured, capsys):
    assert _run(_file(tmp_path, measured), "--bound", "0.1") == 0
    assert "1 ratios compared, 0 below 10%" in capsys.readouterr().out


def test_a_ratio_that_fell_twice_is_a_regression(tmp_path, measured, capsys):
    assert _run(_file(tmp_path, measured, ratio=100.0)) == 1
    printed = capsys.readouterr().out
    assert "measured again" in printed
    assert "WORSE  gram-64, eager over sparsekern" in printed


def test_a_ratio_that_fell_once_is_noise(tmp_path, measured, monkeypatch):
    real, turns = runner.run, []

    def noisy(chosen, settings):
        result = real(chosen, settings)
        turns.append(1)
        if len(turns) == 1:
            result.cases[0].rows[0].seconds *= 1000
        return result

    monkeypatch.setattr(runner, "run", noisy)
    outcome = check.check(
        _file(tmp_path, measured),
        lambda quick: cases.select(names=["gram-64"], quick=quick),
        "reference",
        bound=0.1,
    )
    assert len(turns) == 2
    assert outcome.is_good
    assert [finding.case for finding in outcome.findings] == ["gram-64"]


def test_a_wrong_result_fails(tmp_path, measured, monkeypatch, capsys):
    path = _file(tmp_path, measured)
    monkeypatch.setattr("sparsekern.bench.gate.relative_distance", lambda result, expected: 1.0)
    monkeypatch.setattr("sparsekern.bench.gate.distance", lambda *_: 1.0)
    assert _run(path) == 1
    assert "WRONG  gram-64: wrong, error 1.0e+00" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "why"), [({"isa": "vliw"}, "instruction set vliw")])
def test_another_isa_gets_the_gate_alone(tmp_path, measured, capsys, change, why):
    assert _run(_file(tmp_path, measured, ratio=100.0, **change)) == 0
    printed = capsys.readouterr().out
    assert why in printed
    assert machine.describe()["isa"] in printed
    assert "0 ratios compared" in printed


def test_files_that_hold_no_results_are_told_in_one_line(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="is not a file"):
        _run(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no results"):
        _run(path)
    with pytest.raises(ValueError, match="--bound must be"):
        _run(path, "--bound", "2")
