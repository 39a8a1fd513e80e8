"""What a folder of results lacks, runs that go on where one ended, and how long the rest takes."""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsekern.bench import cases, command, floor, git, results, runner, unfinished
from sparsekern.bench.results import CaseResult, Results, Row
from sparsekern.bench.settings import Settings
from sparsekern.bench.unfinished import Progress

_SETTINGS = Settings(backend="reference", quick=True)


def _held(*results_of_cases):
    return Results({}, {}, {}, list(results_of_cases))


def _result(case, names, commit="abc", memory=None):
    rows = [Row(name, name, seconds=1.0, extra_bytes=memory) for name in names]
    measured = {"date": "2025-01-01", "commit": commit}
    return CaseResult(case, "similarity", "t", "r", rows, measured=measured)


def _reasons(held, settings=_SETTINGS, missing=True, older_than=None):
    chosen = cases.select(names=["gram-64", "gram-256"], quick=True)
    return unfinished.reasons(chosen, held, settings, missing, older_than)


def test_cases_and_rows_that_are_not_there_are_missing():
    whole = ("sparsekern", "eager", "blocked_mm")  # on the reference there is no reference row
    assert _reasons(None) == {"gram-64": "not measured", "gram-256": "not measured"}
    held = _held(_result("gram-64", whole), _result("gram-256", whole[:2]))
    assert _reasons(held) == {"gram-256": "lacks torch.mm, lower panels"}
    few = Settings(backend="reference", quick=True, compare=("eager",))
    assert _reasons(held, few) == {}


def test_memory_is_missing_from_times_that_are_there():
    memory = Settings(backend="reference", quick=True, memory="only")
    held = _held(_result("gram-64", ("sparsekern",), memory=0), _result("gram-256", ("eager",)))
    assert _reasons(held, memory) == {"gram-256": "lacks memory of eager"}
    assert _reasons(None, memory) == {}


def test_what_was_measured_before_a_commit_is_measured_again(monkeypatch):
    monkeypatch.setattr(git, "commit", lambda ref: ref)
    monkeypatch.setattr(git, "contains", lambda newer, older: (newer, older) == ("new", "fix"))
    names = ("sparsekern",)
    held = _held(_result("gram-64", names, "new with changes"), _result("gram-256", names, "old"))
    assert _reasons(held, missing=False, older_than="fix") == {"gram-256": "measured at old"}
    unknown = _held(_result("gram-64", names, ""))
    found = _reasons(unknown, missing=False, older_than="fix")
    assert found == {"gram-64": "measured at no known commit"}


def test_git_knows_which_commit_comes_after_which(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")

    def run(*words):
        command = ("git", *identity, *words)
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    run("init", "-q")
    for message in ("first", "second"):
        run("commit", "-q", "--allow-empty", "-m", message)
    monkeypatch.setattr(git, "ROOT", tmp_path)
    git.contains.cache_clear()
    first, second = git.commit("HEAD~1"), git.commit("HEAD")
    assert git.contains(second, first)
    assert git.contains(first[:10], first)
    assert not git.contains(first, second)
    assert not git.contains("0123456789", first)
    with pytest.raises(ValueError, match="'no-such-ref' is not a commit"):
        git.commit("no-such-ref")


def test_the_rest_takes_what_cases_of_its_kind_took():
    progress = Progress(["M1-a", "M1-b", "S1", "S2", "S3"], known={"S1": 100.0})
    assert progress.remaining() == 500.0  # one case is known, and stands for all
    line = progress.add(CaseResult("M1-a", "masked", "t", "r", took=4.0))
    assert line == "1 of 5 cases in 4 s, about 3 min left"
    assert progress.remaining() == 4 + 100 + 2 * (4 + 100) / 2
    for case_id in ("M1-b", "S1", "S2", "S3"):
        line = progress.add(CaseResult(case_id, "masked", "t", "r", took=100.0))
    assert line == "5 of 5 cases in 7 min"


def _parse(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(words)


def _words(out, *more):
    quick = (
        "--quick",
        "--case",
        "gram-64,gram-256,O1-grad",
        "--backend",
        "reference",
        "--threads",
        "1",
    )
    return _parse(*quick, "--compare", "torch_mul", "--out", str(out), *more)


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(floor, "measure", lambda dtype, quick, device: floor.Floor(1e11, 1e10))
    measure = runner._measure

    def interrupted(case, *rest):
        if case.id == "gram-256":
            raise KeyboardInterrupt
        return measure(case, *rest)

    monkeypatch.setattr(runner, "_measure", interrupted)
    assert command.run(_words(tmp_path)) == 130
    assert "--missing goes on" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()  # and no part of a file
    assert [case["id"] for case in json.loads(path.read_text())["cases"]] == ["gram-64"]
    first = path.read_text()

    assert command.run(_words(tmp_path, "--missing", "--list")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gram-256  not measured",
        "O1-grad   not measured",
    ]
    monkeypatch.setattr(runner, "_measure", measure)
    assert command.run(_words(tmp_path, "--missing")) == 0
    printed = capsys.readouterr().out
    assert "2 cases are left to measure in float32" in printed
    assert "1 of 2 cases in" in printed
    data = json.loads(path.read_text())
    assert [case["id"] for case in data["cases"]] == ["gram-64", "gram-256", "O1-grad"]
    assert data["cases"][0] == json.loads(first)["cases"][0]  # not measured again
    assert all(case["took"] > 0 for case in data["cases"])
    assert command.run(_words(tmp_path, "--missing")) == 0
    assert "0 cases are left" in capsys.readouterr().out


def test_results_of_another_machine_are_told_before_anything_is_measured(tmp_path, monkeypatch):
    held = Results({"processor": "another"}, _settings_of_words(), {}, [])
    results.save(held, tmp_path, [])
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="another machine"):
        command.run(_words(tmp_path))


def _settings_of_words():
    return Settings(backend="reference", quick=True, threads=1).described


def test_results_files_are_replaced_whole(tmp_path, monkeypatch):
    held = Results({}, _settings_of_words(), {}, [])
    path = results.save(held, tmp_path, [])
    before = path.read_text()
    monkeypatch.setattr(Path, "write_text", _half)
    with pytest.raises(KeyboardInterrupt):
        results.save(held, tmp_path, [])
    assert path.read_text() == before


def _half(path, text, **_):
    with path.open("w") as file:
        file.write(text[: len(text) // 2])
    raise KeyboardInterrupt


@pytest.mark.parametrize("word", [("--missing",), ("--older-than", "HEAD")])
def test_what_is_left_is_left_of_a_folder(word):
    with pytest.raises(ValueError, match="look at what --out holds"):
        command.run(_parse("--quick", *word))
