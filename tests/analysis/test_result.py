"""Results are kept whole, and drawn so that they can be read."""

import json

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text

from sparsekern.analysis import CKA, CKAResult
from sparsekern.analysis.plots import _boundaries

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def result(net, images):
    return CKA(net, layers1=["conv1", "bn1", "fc"], permutations=9, names=("first", "f")).compare(
        images.split(8), progress=False
    )


def _made(rows, columns=None, **fields):
    generator = torch.Generator().manual_seed(0)
    names = [f"block{i // 4}.layer{i % 4}" for i in range(max(rows, columns or rows))]
    matrix = torch.rand(rows, columns or rows, generator=generator, dtype=torch.float64)
    return CKAResult(matrix, names[:rows], names[: columns or rows], 64, **fields)


def test_saved_and_loaded_it_is_the_same(result, tmp_path):
    path = result.save(tmp_path / "deep" / "result")
    assert path == tmp_path / "deep" / "result.npz"
    again = CKAResult.load(path)
    for name, value in vars(result).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    with np.load(path) as stored:  # readable without this package
        header = json.loads(str(stored["header"]))
        assert header["rows"] == ["conv1", "bn1", "fc"]
        assert stored["matrix"].shape == (3, 3)
    assert [file.name for file in path.parent.iterdir()] == ["result.npz"]


def test_without_errors_it_is_saved_too(tmp_path):
    again = CKAResult.load(_made(3, 5).save(tmp_path / "r.npz"))
    assert again.standard_error is None
    assert again.matrix.shape == (3, 5)


def test_files_that_are_no_results(tmp_path):
    with pytest.raises(FileNotFoundError):
        CKAResult.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", matrix=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match="is not a saved CKAResult"):
            CKAResult.load(tmp_path / name)


def test_a_failed_save_leaves_the_old_file(result, tmp_path, monkeypatch):
    path = result.save(tmp_path / "result.npz")
    content = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        _made(4).save(path)
    assert path.read_bytes() == content


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 2\), and there are 1 rows"):
        CKAResult(torch.zeros(2, 2), ["a"], ["a", "b"], 8)


def test_csv(result, tmp_path):
    lines = result.to_csv(tmp_path / "r.csv").splitlines()
    assert (tmp_path / "r.csv").read_text().splitlines() == lines
    assert lines[0] == ",conv1,bn1,fc"
    assert float(lines[1].split(",")[2]) == result.matrix[0, 1]


def test_pandas(result):
    pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert frame.loc["conv1", "fc"] == result.matrix[0, 2]


def test_text(result):
    assert repr(result) == (
        "CKAResult(first against itself: 3 x 3 layers, unbiased CKA, linear kernel, n=40, "
        "5 batches)"
    )
    page = _made(30, models=("<b>", "x"))._repr_html_()
    assert "&lt;b&gt;" in page
    assert "6 rows and 6 columns more" in page
    assert page.count("<td") == 24 * 24


def _overlaps(axes, axis):
    figure = axes.figure
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
    return any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (14, 14), (20, 45), (46, 46), (200, 200)])
def test_labels_do_not_overlap(rows, columns):
    axes = _made(rows, columns).plot()
    assert not _overlaps(axes, axes.xaxis)
    assert not _overlaps(axes, axes.yaxis)
    assert len(axes.get_xticklabels()) <= 46
    values = [text.get_text() for text in axes.texts]
    assert len(values) == (rows * columns if max(rows, columns) <= 14 else 0)


def _outside(axes):
    """Texts that the edge of the picture cuts."""
    canvas = axes.figure.canvas
    canvas.draw()
    width, height = canvas.get_width_height()
    texts = axes.figure.findobj(lambda part: isinstance(part, Text) and part.get_text())
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text.get_visible()}
    return [
        text
        for text, box in boxes.items()
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]


@pytest.mark.parametrize("layers", [5, 20, 30])
def test_nothing_is_cut_off(layers):
    models = ("runs/some/weights/none-0.pt", "runs/some/weights/ckasr-0.pt")
    one, two = _made(layers, models=models), _made(layers, models=models)
    two.matrix *= 0.9
    assert _outside(one.plot()) == []
    assert _outside(one.plot_difference(two)) == []
    assert _outside(two.plot_difference(one, title="T")) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["stem", "a.0", "a.1", "b.0", "b.1"], [1, 3]),
        (["words", *(f"blocks.layers.{i}.{part}" for i in range(3) for part in "xy")], [1, 3, 5]),
        (["conv", "bn", "a.0.x", "a.0.y", "a.1.x", "a.1.y"], [2, 4]),
        (["a", "b", "c"], []),
        (["a.x", "a.y", "a.z"], []),
    ],
)
def test_lines_part_blocks(names, expected):
    assert _boundaries(names) == expected


def test_pictures_show_the_matrix(result):
    axes = result.plot(limits=(-0.5, 1.0), title="T", values=True)
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), result.numpy())
    assert image.get_clim() == (-0.5, 1.0)
    assert axes.get_title() == "T"
    assert axes.texts[1].get_text() == f"{float(result.matrix[0, 1]):.2f}"
    assert image.origin == "lower"


def test_differences_diverge_from_zero(result):
    other = CKAResult(result.matrix - 0.25, result.rows, result.columns, 40)
    (image,) = result.plot_difference(other).images
    np.testing.assert_allclose(image.get_array(), 0.25)
    low, high = image.get_clim()
    assert low == pytest.approx(-high)
    with pytest.raises(ValueError, match="a difference needs the same number"):
        result.plot_difference(_made(4))


def test_drawing_touches_no_global_state(result):
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), dict(matplotlib.rcParams)
    result.plot()
    assert (plt.get_fignums(), dict(matplotlib.rcParams)) == before
