"""``--check``: ratios against a committed file, and when they are not compared."""

import argparse
import dataclasses
import time

import pytest

from sparsekern.bench import cases, check, command, load, machine, results, runner
from sparsekern.bench.load import Reading
from sparsekern.bench.results import Results
from sparsekern.bench.settings import Settings
from sparsekern.ops import similarity

_SETTINGS = Settings(backend="reference", quick=True, compare=("eager",), extras=False)


def _readings(monkeypatch, cores):
    """A machine on which so many cores are idle or ours, whoever else is there."""
    ticks = iter(range(1_000_000))

    def read():
        wall = next(ticks)
        return Reading(wall, cores * wall)

    monkeypatch.setattr(load, "read", read)
    monkeypatch.setattr(load, "_WINDOW", 0.01)


@pytest.fixture(autouse=True)
def free_machine(monkeypatch):
    _readings(monkeypatch, 64)


@pytest.fixture(scope="module")
def measured():
    return runner.run(cases.select(names=["gram-64"], quick=True), _SETTINGS)


def _file(tmp_path, measured, ratio=1.0, **machine_changes):
    """A committed file in which every baseline took ``ratio`` times what it really did."""
    (case,) = measured.cases
    rows = [dataclasses.replace(row) for row in case.rows]
    for row in rows[1:]:
        row.seconds *= ratio
        row.least *= ratio
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
    assert "1 ratios compared, 0 worse than 10%" in capsys.readouterr().out


def test_a_slower_operator_is_a_regression(tmp_path, measured, monkeypatch, capsys):
    path, real = _file(tmp_path, measured), similarity.gram

    def slower(*arguments, **options):
        time.sleep(0.02)
        return real(*arguments, **options)

    monkeypatch.setattr(similarity, "gram", slower)
    assert _run(path) == 1
    printed = capsys.readouterr().out
    assert "once more" in printed
    assert "WORSE  gram-64, eager over sparsekern" in printed


def test_on_a_busy_machine_nothing_is_judged(tmp_path, measured, monkeypatch, capsys):
    path = _file(tmp_path, measured, ratio=100.0)
    assert _run(path) == 1
    _readings(monkeypatch, 0.5)
    monkeypatch.setattr(load, "wait_until_free", lambda threads, seconds: 0.0)
    assert _run(path) == 0
    assert "so low ratios are not judged: gram-64 (eager)" in capsys.readouterr().out


def test_another_processor_halves_the_bound(tmp_path, measured, capsys):
    path = _file(tmp_path, measured, ratio=3.0, processor="Z80")
    assert _run(path) == 0
    assert "made on Z80: the bound is 0.25 here" in capsys.readouterr().out


def test_waiting_ends_when_the_machine_is_free_or_patience_does(monkeypatch):
    _readings(monkeypatch, 1)
    assert load.wait_until_free(1, 5.0) == pytest.approx(4.99)
    assert load.wait_until_free(2, 0.05) == pytest.approx(0.0)
    assert load.is_free(None, None, 2)  # where the system does not tell


def test_this_machine_tells_how_much_is_free(monkeypatch):
    monkeypatch.undo()
    if load.read() is None:
        pytest.skip("no /proc/stat here")
    before = load.read()
    while time.perf_counter() - before.wall < 0.1:
        pass
    after = load.read()
    assert after.available > before.available  # by what this process took at least
    assert load.is_free(before, after, 0)


def test_a_ratio_that_fell_once_is_noise(tmp_path, measured, monkeypatch):
    real, turns = runner.run, []

    def noisy(chosen, settings):
        result = real(chosen, settings)
        turns.append(1)
        if len(turns) == 1:
            result.cases[0].rows[0].least *= 1000
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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"isa": "vliw"}, f"instruction set vliw (P), and this is {machine.describe()['isa']}"),
        ({"torch": "1.0.0+cpu"}, "made with torch 1.0.0, and this is"),
    ],
)
def test_another_isa_or_torch_gets_the_gate_alone(tmp_path, measured, capsys, change, why):
    assert _run(_file(tmp_path, measured, ratio=100.0, processor="P", **change)) == 0
    printed = capsys.readouterr().out
    assert why in printed
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
