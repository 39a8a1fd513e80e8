"""sparsekern effects: what claims train, and what their runs are said to show."""

import json

import pytest

from sparsekern.cli import main
from sparsekern.training.effects.claims import CLAIMS, Arm, Claim, Measure
from sparsekern.training.effects.verdicts import report, verdict

_MEASURE = Measure("share", lambda record: record.get("share"), 100, 1)
_ARMS = (Arm("new", "new (better)", {}), Arm("old", "old (worse)", {}))


def _claim(**rest):
    return Claim("claim", "New is better", _ARMS, (_MEASURE,), **rest)


def _verdict(first, second, **rest):
    return verdict(_claim(**rest), [[dict(enumerate(first))], [dict(enumerate(second))]])


def test_every_claim_trains_its_arms_alike_but_for_what_is_compared():
    names = [arm.name for claim in CLAIMS for arm in claim.arms]
    assert len(set(names)) == len(names)
    assert [claim.name for claim in CLAIMS] == ["ckasr", "art", "layersparsity", "ap", "optg"]
    for claim in CLAIMS:
        made = [arm.settings({"seeds": 5, "threads": 1}) for arm in claim.arms]
        assert {s.seeds for s in made} == {5}
        for name in ("model", "width", "data", "sparsity", "lr", "batch_size", "held_out"):
            assert len({getattr(s, name) for s in made}) == 1, (claim.name, name)
        assert {s.held_out for s in made} == {"test"}
        assert len({(s.method, s.variants[0], str(s.options)) for s in made}) == len(made)


def test_epochs_are_the_same_in_all_for_one_shot_magnitude():
    learned, last, one_shot = (arm.settings({}) for arm in CLAIMS[-1].arms)
    assert one_shot.options["lth"] == {"rounds": 1, "rewind": None}
    assert learned.epochs == (one_shot.options["lth"]["rounds"] + 1) * one_shot.epochs
    assert (last.method, last.options["gmp"], last.epochs) == ("gmp", {"once": 1.0}, learned.epochs)


@pytest.mark.parametrize(
    ("first", "second", "sign", "begins"),
    [
        ([3, 4, 5], [1, 2, 3.1], 1, "Appears against old (worse): 3 of 3"),
        ([3, 4, 5], [1, 2, 3.1], -1, "The opposite appears against old (worse): 0 of 3"),
        ([1, 4, 5], [2, 3, 5], 1, "Does not appear (within two standard errors of none)"),
        ([1], [2], 1, "Too few seeds to say against old (worse): 0 of 1"),
        ([], [], 1, "Too few seeds to say"),
    ],
)
def test_a_difference_counts_beyond_two_standard_errors(first, second, sign, begins):
    assert _verdict(first, second, sign=sign).startswith(begins)


def test_what_every_run_must_reach_is_counted():
    assert _verdict([1, 2], [], least=1) == "Appears: at least 1 in 2 of 2 runs."
    assert _verdict([1, 0], [], least=1) == "Does not appear: at least 1 in 1 of 2 runs."
    assert _verdict([], [], least=1).startswith("Does not appear")


def test_the_report_pairs_runs_by_seed(tmp_path):
    for name, values in (("new", {0: 0.5, 1: 0.7}), ("old", {1: 0.4, 0: 0.3, 2: 0.9})):
        (tmp_path / name).mkdir()
        lines = [{"kind": "run", "seed": s, "share": v} for s, v in values.items()]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "results.jsonl").write_text(text)
    text = report([_claim()], tmp_path)
    assert "| new (better) | 60.0 ± 14.1 |" in text
    assert "| first minus: old | +25.0 ± 5.0 |" in text
    assert "**Appears against old (worse): 2 of 2 pairs of runs.**" in text


def test_it_trains_reports_and_skips_what_is_done(tmp_path, capsys):
    out = tmp_path / "effects"
    options = ["effects", "--out", str(out), "--only", "ap", "--seeds", "2", "--epochs", "1"]
    assert main([*options, "--jobs", "2"]) == 0
    text = (out / "effects.md").read_text()
    assert "AP lowers the dynamic dead-neuron rate" in text
    assert text in capsys.readouterr().out
    assert main(options) == 0
    assert "2 of 2 cells are done already" in capsys.readouterr().out
    assert (out / "effects.md").read_text() == text
    assert main([*options[:-1], "2"]) == 2
    assert "was made with epochs 1, and now it is 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "magic"], "--only must be one of ckasr, art, layersparsity, ap, optg"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_wrong_options_are_one_line(options, told, tmp_path, capsys):
    assert main(["effects", "--out", str(tmp_path / "effects"), *options]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
