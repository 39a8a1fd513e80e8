"""The pictures: what is drawn, and what is left out."""

import argparse

import pytest

pytest.importorskip("matplotlib")

from sparsekern.bench import command, plots, results
from sparsekern.bench.results import CaseResult, Results, Row

_MACHINE = {"processor": "P", "isa": "avx2"}
_SETTINGS = {
    "backend": "cpu",
    "dtype": "float32",
    "threads": 2,
    "matmul_precision": "highest",
    "quick": False,
}


def _rows(*times, status="ok"):
    names = ("sparsekern", "dense", "csr")
    return [
        Row(name, name, seconds=seconds, samples=9, status=status if name == "csr" else "ok")
        for name, seconds in zip(names, times, strict=True)
    ]


def _point(sparsity, *times):
    series = {
        "family": "M (4, 8, 16)",
        "x_name": "sparsity",
        "x": sparsity,
        "order": "kept entries",
        "predicted": 1 - sparsity,
    }
    return CaseResult(
        f"M-{sparsity}",
        "masked",
        "t",
        "r",
        _rows(*times),
        series=series,
        floor_seconds=(1 - sparsity) * 1e-3,
        floor_limit="operations",
        operations=int(1e9 * (1 - sparsity)),
        bytes=1 << 20,
    )


def _results():
    cases = [
        CaseResult("A", "similarity", "t", "r", _rows(1.0, 2.0, 4.0), operations=9, bytes=3),
        CaseResult("B", "similarity", "t", "r", _rows(1.0, 0.5, 1.0, status="wrong")),
        _point(0.98, 1e-3, 9e-3, 2e-3),
        _point(0.5, 9e-3, 9e-3, 5e-2),
        _point(0.9, 3e-3, 9e-3, 1e-2),
    ]
    return Results(dict(_MACHINE), dict(_SETTINGS), {"flops": 1e11, "bandwidth": 1e10}, cases)


def _lines(axes, label):
    return [list(line.get_xdata()) for line in axes.get_lines() if line.get_label() == label]


def test_all_pictures_are_drawn_and_readable_in_size(tmp_path):
    paths = plots.draw(_results(), tmp_path)
    assert [path.name for path in paths] == [
        "cpu-2-threads-float32-similarity-ratios.png",
        "cpu-2-threads-float32-masked-curves.png",
        "cpu-2-threads-float32-roofline.png",
    ]
    for path in paths:
        header = path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert 400 < int.from_bytes(header[16:20], "big") < 2500


def test_curves_run_along_what_is_kept_with_floor_and_prediction():
    measured = _results()
    looks = plots._looks(measured)
    figure = plots._curves(measured, "masked", measured.cases[2:], looks)
    (axes,) = figure.axes
    assert axes.get_title() == "M (4, 8, 16)\npredicted order: kept entries"
    assert axes.xaxis_inverted()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "0.9", "0.98"]
    for label in ("sparsekern", "dense", "csr", "floor", "predicted order"):
        (xs,) = _lines(axes, label)
        assert xs == pytest.approx([0.5, 0.1, 0.02])


def test_wrong_results_get_no_point():
    measured = _results()
    figure = plots._ratios(measured, "similarity", measured.cases[:2], plots._looks(measured))
    (axes,) = figure.axes
    points = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() != "None"]
    assert points == [2.0, 4.0, 0.5]


def test_the_roofline_has_both_roofs():
    figure = plots._roofline(_results())
    (axes,) = figure.axes
    (roof,) = _lines(axes, "floor: bytes, then operations")
    assert 10.0 in roof  # operations per byte where 1e11 per second meets 1e10 bytes per second
    ours = next(line for line in axes.get_lines() if line.get_label() == "sparsekern")
    assert len(ours.get_xdata()) == 4


def test_a_folder_of_results_is_drawn_without_measuring(tmp_path, capsys):
    results.save(_results(), tmp_path / "in", ["A"])
    parser = argparse.ArgumentParser()
    command.configure(parser)
    words = ("--plots", str(tmp_path / "out"), "--results", str(tmp_path / "in"))
    assert command.run(parser.parse_args(words)) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert capsys.readouterr().out.count("drew") == 3
    with pytest.raises(ValueError, match="holds no results"):
        command.run(parser.parse_args(("--plots", str(tmp_path), "--results", str(tmp_path))))
