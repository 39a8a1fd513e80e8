"""sparsekern report: what is compared with what, the numbers of its tables, its pictures."""

import importlib.util
import json
import math
import statistics

import pytest

from sparsekern.cli import main
from sparsekern.training.reporting import tables
from sparsekern.training.reporting.collect import Configuration, collect
from sparsekern.training.reporting.command import write_report
from sparsekern.training.settings import default_settings
from sparsekern.training.store import Store

LAYERS = {"conv1.weight": (10, 144), "fc.weight": (40, 640)}
MATRIX = [[1.0, 0.9, 0.5], [0.9, 1.0, 0.7], [0.5, 0.7, 1.0]]


def write(directory, method, sparsity, accuracies, **given):
    """An experiment as sparsekern train leaves it, with these accuracies (by variant and seed)."""
    values = {"method": method, "sparsity": sparsity, "model": "resnet8", **given}
    settings = default_settings({**values, "seeds": max(map(len, accuracies.values()))})
    store = Store(directory)
    store.start(settings)
    for variant, by_seed in accuracies.items():
        for seed, accuracy in enumerate(by_seed):
            same = {"regularizer": variant, "seed": seed, "accuracy": accuracy}
            for epoch in (1, 2, 3):
                dead = {"static": 0.01, "dynamic": 0.4 + accuracy / 10 / epoch, "total": 0.5}
                store.append({"kind": "epoch", "epoch": epoch, **same, "dead_neurons": dead})
            result = {"method": method, "interlayer_cka": 0.7 + accuracy / 100, "cka": MATRIX}
            result |= {"blocks": ["stage1.0", "stage2.0", "stage3.0"], "seconds": 2.0}
            result |= {"dead_neurons": {"static": 0.0, "dynamic": 0.4, "total": 0.4}}
            result["layers"] = {} if method == "dense" else LAYERS
            store.append({"kind": "run", **same, **result})
    return directory


@pytest.fixture
def results(tmp_path):
    write(tmp_path / "dense", "dense", 0.0, {"none": [0.98, 0.99]})
    write(tmp_path / "a", "gmp", 0.9, {"none": [0.90, 0.94, 0.92]})
    both = {"none": [0.8, 0.7], "ckasr": [0.85, 0.73]}
    write(tmp_path / "b", "gmp", 0.95, both, regularizer=["ckasr"], compare=True)
    write(tmp_path / "c", "rigl", 0.9, {"ap": [0.5, 0.7]}, ap=True)
    return tmp_path


def cells(text, name):
    """The cells of the first row with this name."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_means_and_deviations(results):
    (section,) = collect([results])
    assert section.sparsities == [0.9, 0.95]
    text = tables.results(section, "accuracy", 100, 2)
    std = 100 * statistics.stdev([0.90, 0.94, 0.92])
    assert cells(text, "GMP") == [f"92.00 ± {std:.2f}", "75.00 ± 7.07"]
    assert cells(text, "GMP + CKA-SR") == ["", "79.00 ± 8.49"]
    assert cells(text, "RigL + AP") == ["60.00 ± 14.14", ""]
    assert "Without pruning: dense 98.50 ± 0.71." in text
    assert text.splitlines()[0] == "|  | 0.9 | 0.95 |"


def test_differences_are_paired_by_seed(results):
    (section,) = collect([results])
    text = tables.paired_differences(section, "accuracy", 100, 2)
    # Seeds 0 and 1: +5 and +3 points; unpaired the spread would hide them.
    assert cells(text, "GMP + CKA-SR") == ["", "**+4.00 ± 1.00**"]
    assert "RigL" not in text  # there is no plain RigL to compare with


def test_only_common_seeds_are_compared():
    mean, error, count = tables.difference({0: 3.0, 1: 5.0, 2: 9.0}, {1: 4.0, 2: 6.0, 7: 0.0})
    assert (mean, count) == (2.0, 2)
    assert error == pytest.approx(statistics.stdev([1, 3]) / math.sqrt(2))
    assert tables.difference({0: 1.0}, {1: 1.0})[2] == 0
    assert math.isnan(tables.difference({0: 2.0}, {0: 1.0})[1])


def test_runs_of_several_folders_are_put_together_and_none_counts_twice(tmp_path):
    write(tmp_path / "a", "gmp", 0.9, {"none": [0.9, 0.8]})
    write(tmp_path / "b", "gmp", 0.9, {"none": [0.1, 0.1, 0.7]})
    (section,) = collect([tmp_path / "a", tmp_path / "b", tmp_path])
    found = section.values(Configuration("gmp", "none", 0.9), "accuracy")
    assert found == {0: 0.9, 1: 0.8, 2: 0.7}


def test_what_was_trained_differently_is_told_apart(tmp_path):
    write(tmp_path / "a", "gmp", 0.9, {"none": [0.9]})
    write(tmp_path / "b", "gmp", 0.9, {"none": [0.8]}, epochs=80)
    write(tmp_path / "c", "gmp", 0.9, {"none": [0.7]}, options={"gmp": {"every": 7}})
    write(tmp_path / "d", "gmp", 0.9, {"none": [0.7]}, data_dir="elsewhere", threads=4)
    write(tmp_path / "e", "gmp", 0.9, {"none": [0.6]}, model="resnet20")
    sections = collect([tmp_path])
    assert [s.title for s in sections] == [
        "resnet8 on digits (epochs 40)",
        "resnet8 on digits (epochs 80)",
        "resnet20 on digits",
    ]
    names = {c.name: list(runs) for c, runs in sections[0].runs.items()}
    assert names == {"GMP (defaults)": [0], "GMP (gmp.every 7)": [0]}


def test_a_regulariser_does_not_tell_plain_runs_apart(tmp_path):
    write(tmp_path / "a", "rst", 0.9, {"none": [0.9]})
    both = {"none": [0.9, 0.8], "ckasr": [0.9, 0.8]}
    write(tmp_path / "b", "rst", 0.9, both, regularizer=["ckasr"], compare=True, beta=0.5)
    (section,) = collect([tmp_path])
    assert [c.name for c in section.ordered(section.runs)] == ["RST", "RST + CKA-SR"]


def test_variants_stand_in_one_order(tmp_path):
    for number, (variant, given) in enumerate(
        {
            "ap": {"ap": True},
            "ckasr+ap": {"ap": True, "regularizer": ["ckasr"]},
            "hypersparse": {"regularizer": ["hypersparse"]},
            "none": {},
            "ckasr": {"regularizer": ["ckasr"]},
        }.items()
    ):
        write(tmp_path / str(number), "gmp", 0.9, {variant: [0.9]}, **given)
    (section,) = collect([tmp_path])
    assert [c.variant_name for c in section.ordered(section.runs)] == [
        "plain",
        "+ CKA-SR",
        "+ HyperSparse",
        "+ AP",
        "+ CKA-SR + AP",
    ]


def test_the_command_writes_a_report_with_pictures(results, capsys):
    assert main(["report", str(results)]) == 0
    output = capsys.readouterr().out
    text = (results / "report.md").read_text()
    assert "## resnet8 on digits" in text
    assert "5 configurations, 2 to 3 seed(s) each, measured on test images." in text
    for kind in ("accuracy", "cka", "dead-neurons", "layers"):
        path = results / f"digits-resnet8-{kind}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"]({path.name})" in text
        assert str(path) in output
    assert "### Interlayer CKA: mean ± std over seeds" in text


def test_dense_networks_alone_make_a_report_without_pictures(tmp_path):
    write(tmp_path / "dense", "dense", 0.0, {"none": [0.98]})
    text, paths = write_report([tmp_path], tmp_path / "out")
    assert cells(text, "dense") == ["98.00"]
    assert [path.name for path in paths] == ["report.md"]


def test_without_matplotlib_there_are_tables(results, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest),
    )
    text, paths = write_report([results], results / "out")
    assert "pip install 'sparsekern[plots]'" in text
    assert len(paths) == 1


def test_runs_in_progress_do_not_count(results, capsys):
    for path in (results / "a", results / "c"):
        lines = (path / "results.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["kind"] == "epoch"]
        (path / "results.jsonl").write_text("".join(kept))
    (section,) = collect([results])
    assert {c.method for c in section.runs} == {"dense", "gmp"}
    assert main(["report", str(results / "a")]) == 2
    assert "holds no finished run of sparsekern train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere is no directory"),
        (["--at", "0.5", "."], "--at must be one of 0.9, 0.95; got 0.5"),
        (["--out", "a/config.json/x", "."], "cannot be made"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, told, results, capsys, monkeypatch):
    monkeypatch.chdir(results)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
