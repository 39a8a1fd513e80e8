"""Wrong options give one line that says what to change; right ones reach the settings."""

import subprocess
import sys

import pytest

from sparsekern.training.settings import ALL_SAMPLES, default_settings


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sparsity", 1.0], "--sparsity is the share of zeros, in [0, 1)"),
        (["--sparsity", -0.2], "got -0.2"),
        (["--sparsity", "nan"], "--sparsity"),
        (["--model", "resnet9"], "--model must be one of resnet8, resnet20"),
        (["--regularizer", "l1"], "--regularizer must be one of none, ckasr, augckasr"),
        (["--seeds", 0], "--seeds must be at least 1, got 0"),
        (["--epochs", 0], "--epochs must be at least 1"),
        (["--width", 0], "--width must be at least 1"),
        (["--threads", 0], "--threads must be at least 1"),
        (["--batch-size", 3], "--batch-size must be at least 4, got 3"),
        (["--samples", 3], "--samples must be at least 4, or -1"),
        (["--every", 0], "--every must be at least 1"),
        (["--beta", -1], "--beta must be a number of at least 0"),
        (["--lr", 0], "--lr must be a positive number"),
        (["--held-out", "train"], "--held-out must be one of test, validation"),
        (["--data", "mnist"], "--data must be one of digits, cifar10"),
        (["--data", "cifar10"], "cifar10 is not in data: expected data/cifar-10-batches-py"),
        (["--method", "magic"], "--method must be one of dense, rst"),
        (["--optimizer", "lion"], "--optimizer must be one of sgd, adamw"),
        (["--schedule", "wsd"], "--schedule must be one of steps, cosine, constant"),
        (["--milestones", 0.5, 1], "milestones must be shares of the epochs between 0 and 1"),
        (["--momentum", 0], "--momentum 0 has no Nesterov form: add --no-nesterov"),
        (["--weight-decay", -1], "--weight-decay must be finite and not negative, got -1.0"),
        (["--momentum", 2], "--momentum must be in [0, 1), got 2.0"),
        (["--momentum", "nan"], "--momentum must be in [0, 1), got nan"),
        (["--label-smoothing", 1.5], "--label-smoothing must be from 0 to 1, got 1.5"),
        (["--model", "vit", "--width", 16], "the vit's width must be a multiple of 3"),
        (["--set", "rst"], "--set rst must have the form NAME.OPTION=VALUE"),
        (["--set", "gmp.steps=1"], "--set gmp.... is for gmp, which is not in use"),
        (["--set", "rst.colour=1"], "--set rst...: got an unexpected keyword argument 'colour'"),
        (["--set", "rst.distribution=best"], "--set rst...: distribution must be one of erk"),
        (["--regularizer", "ckasr", "--regularizer", "augckasr"], "forms of one: choose one"),
        (["--regularizer", "ckasr", "--regularizer", "ckasr"], "each only once"),
        (["--regularizer", "none", "--compare"], "--compare needs a --regularizer"),
        (["--resume"], "--resume needs the --out"),
    ],
)
def test_wrong_options(refused, options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused(*options)
    assert not list(tmp_path.iterdir())


def test_resume_needs_something_to_resume(refused, tmp_path):
    assert "holds nothing to resume" in refused("--resume", "--out", tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_results_are_not_replaced_unasked(train, refused, small, tmp_path, capsys):
    assert train(*small, "--epochs", 1, "--out", tmp_path) == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    capsys.readouterr()
    assert "already holds results" in refused(*small, "--out", tmp_path)
    line = refused("--resume", "--epochs", 9, "--out", tmp_path)
    assert "--epochs 9 differs from the 1" in line
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert train(*small, "--epochs", 2, "--overwrite", "--out", tmp_path) == 0
    assert (tmp_path / "results.jsonl").read_bytes().count(b'"epoch"') > before.count(b'"epoch"')


def test_damaged_files_are_named(train, refused, small, tmp_path):
    assert train(*small, "--epochs", 1, "--out", tmp_path) == 0
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert "checkpoint.pt cannot be read" in refused("--resume", "--out", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in refused("--resume", "--out", tmp_path)


def test_an_out_that_cannot_be_made_is_named(refused, small, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused(*small, "--out", tmp_path / "file" / "run")


def test_without_scikit_learn_the_extra_is_named(refused, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install 'sparsekern[data]'" in refused(*small, "--out", tmp_path)


def test_defaults_depend_on_the_regulariser():
    ckasr = default_settings({}, demo=False)
    assert (ckasr.samples, ckasr.every, ckasr.beta) == (8, 5, 0.03)
    augmented = default_settings({"regularizer": "augckasr", "beta": 0.3}, demo=False)
    assert (augmented.samples, augmented.every, augmented.beta) == (ALL_SAMPLES, 1, 0.3)
    demo = default_settings({"seeds": 2}, demo=True)
    assert demo.variants == ["none", "ckasr"]
    assert demo.seeds == 2


def test_listing_the_options_does_not_load_torch():
    code = (
        "import argparse, sys; sys.modules['torch'] = None; "
        "import importlib.util as u, types; "
        "p = types.ModuleType('sparsekern'); "
        "p.__path__ = list(u.find_spec('sparsekern').submodule_search_locations); "
        "sys.modules['sparsekern'] = p; "
        "from sparsekern.training import command; "
        "command.configure(argparse.ArgumentParser())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
