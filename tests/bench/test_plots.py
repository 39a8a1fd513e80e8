"""The pictures: what is drawn, and what is left out."""

import argparse
import itertools
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from PIL import Image

from sparsekern.bench import command, pictures, plots, report, results
from sparsekern.bench.results import CaseResult, Results, Row

_ROOT = Path(__file__).parents[2]
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
    ((name, families),) = pictures.curve_families("masked", measured.cases[2:]).items()
    figure = plots._curves(measured, name, families)
    (axes,) = figure.axes
    assert axes.get_title() == "M (4, 8, 16)\npredicted order: kept entries"
    assert axes.xaxis_inverted()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "0.9", "0.98"]
    for label in ("sparsekern", "dense", "csr", "floor", "predicted order"):
        (xs,) = _lines(axes, label)
        assert xs == pytest.approx([0.5, 0.1, 0.02])


def test_wrong_results_get_no_point():
    measured = _results()
    figure = plots._ratios(measured, "similarity", measured.cases[:2])
    (axes,) = figure.axes
    points = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() != "None"]
    assert points == [2.0, 4.0, 0.5]


def test_the_roofline_has_both_roofs():
    measured = _results()
    figure = plots._roofline(measured, pictures.roofline_cases(measured))
    (axes,) = figure.axes
    (roof,) = _lines(axes, "floor: bytes, then operations")
    assert 10.0 in roof  # operations per byte where 1e11 per second meets 1e10 bytes per second
    assert [len(xs) for xs in _lines(axes, "sparsekern")] == [1]  # A; B has no operations
    assert [len(xs) for xs in _lines(axes, "sparsekern, M")] == [3]
    assert [text.get_text() for text in axes.texts] == ["A"]


def test_names_keep_clear_of_each_other():
    axes = Figure().add_subplot()
    axes.plot([0, 1], [0, 1])
    plots._name(axes, [(0.5, 0.5, f"case-{index}") for index in range(20)])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 1 < len(boxes) < 20
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_suite_with_many_curves_has_a_picture_for_each_kind():
    points = []
    for kind, size in itertools.product(("M1", "M2"), range(4)):
        for x in (0.5, 0.9):
            series = {"family": f"{kind} {size}", "x_name": "sparsity", "x": x, "order": ""}
            points.append(CaseResult(f"{kind}-{size}-{x}", "masked", "t", "r", series=series))
    found = pictures.curve_families("masked", points)
    assert list(found) == ["masked-curves-M1", "masked-curves-M2"]
    assert list(found["masked-curves-M1"]) == [f"M1 {size}" for size in range(4)]


def test_the_committed_pictures_show_the_committed_results():
    (measured,) = report.committed(_ROOT / report.RESULTS_FOLDER)
    folder = _ROOT / "docs" / "images"
    page = (_ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in pictures.names(measured):
        path = folder / pictures.file_name(measured, name)
        with Image.open(path) as image:
            assert image.text["Source"] == pictures.digest(measured), (
                f"{path} is of other results: run sparsekern bench --plots docs/images "
                "--results benchmarks/results"
            )
        assert path.stat().st_size < 150_000
        assert f"(images/{path.name})" in page
    names = {pictures.file_name(measured, name) for name in pictures.names(measured)}
    assert {path.name for path in folder.glob("cpu-*.png")} == names  # none is left over


def test_pictures_are_of_times_and_not_of_memory():
    measured, other = _results(), _results()
    other.cases[0].rows[0].extra_bytes = 1 << 20
    assert pictures.digest(other) == pictures.digest(measured)
    other.cases[0].rows[1].seconds = 3.0
    assert pictures.digest(other) != pictures.digest(measured)


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
