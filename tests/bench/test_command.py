"""``sparsekern bench`` itself: a quick run, its files, and wrong arguments."""

import argparse
import json

import pytest
import torch

from sparsekern.bench import command, floor, settings, timing


def _parse(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(words)


def _known_floor(monkeypatch):
    """Large products take longer than all else here; one test measures them."""
    monkeypatch.setattr(floor, "measure", lambda dtype, quick, device: floor.Floor(1e11, 1e10))


@pytest.mark.parametrize("case", ["S3", "O1", "scale-d-1024"])
def test_a_quick_run_prints_within_100_columns_and_writes_json(case, tmp_path, capsys, monkeypatch):
    if case != "S3":
        _known_floor(monkeypatch)
    before = torch.get_num_threads()
    words = ("--quick", "--case", case, "--backend", "reference", "--threads", "1")
    status = command.run(_parse(*words, "--compare", "eager,torch_mul", "--out", str(tmp_path)))
    assert status == 0
    assert torch.get_num_threads() == before
    printed = capsys.readouterr().out
    assert case in printed
    assert max(len(line) for line in printed.splitlines() if "results in" not in line) <= 100
    (path,) = tmp_path.glob("*.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["settings"]["threads"] == 1
    assert data["machine"]["torch"] == torch.__version__
    assert {row["status"] for result in data["cases"] for row in result["rows"]} == {"ok"}
    assert all(result["measured"]["date"] for result in data["cases"])


def test_report_fills_files_from_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings, "FULL", timing.QUICK)
    _known_floor(monkeypatch)
    out = tmp_path / "results"
    words = ("--case", "scale-n-16", "--backend", "reference", "--compare", "reference")
    assert command.run(_parse(*words, "--out", str(out))) == 0
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:tables -->\n<!-- /bench:tables -->\n", encoding="utf-8")
    assert command.run(_parse("--report", str(page), "--results", str(out))) == 0
    text = page.read_text(encoding="utf-8")
    assert "### scale-n-16" in text
    assert "MiB" in text  # memory is measured in full runs
    capsys.readouterr()


def test_several_dtypes_are_several_runs(tmp_path, capsys, monkeypatch):
    _known_floor(monkeypatch)
    words = ("--quick", "--case", "gram-64,R1", "--backend", "reference", "--threads", "1")
    assert command.run(_parse(*words, "--dtype", "float64,bfloat16", "--out", str(tmp_path))) == 0
    names = {path.name for path in tmp_path.glob("*.json")}
    assert names == {
        "cpu-1-threads-float64-reference-quick.json",
        "cpu-1-threads-bfloat16-reference-quick.json",
    }
    printed = capsys.readouterr().out
    assert "not in bfloat16: R1" in printed
    assert "torch.mm, lower panels" in printed


def test_listing_measures_nothing(capsys):
    assert command.run(_parse("--list", "--case", "S2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["S2", "S2-imagenet"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--suite", "no-such-suite"), "--suite must be among"),
        (("--case", "S9"), "--case must be among"),
        (("--device", "tpu"), "--device must be one of cpu, cuda"),
        (("--base", "HEAD", "--dtype", "float32,float64"), "--base compares in one --dtype"),
        (("--backend", "tpu"), "--backend must be one of auto, reference, cpu"),
        (("--dtype", "int8"), "--dtype must be one of"),
        (("--compare", "nobody"), "--compare must be among"),
        (("--budget", "0"), "--budget must be above 0 seconds"),
        (("--memory", "perhaps"), "--memory must be one of with, without, only"),
        (("--threads", "0"), "--threads must be between 1 and"),
        (("--case", "S2-imagenet", "--quick"), "without --quick"),
        (("--report", "no-such-file.md"), "is not a file"),
    ],
)
def test_wrong_arguments_are_one_line(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        command.run(_parse(*words))
    assert "\n" not in str(caught.value)
