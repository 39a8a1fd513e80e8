"""JSON round trip, Markdown, and that the documents agree with the committed results."""

import dataclasses
import re
from pathlib import Path

import pytest

from sparsekern.bench import report, results, table
from sparsekern.bench.results import CaseResult, Results, Row

_ROOT = Path(__file__).parents[2]
_MACHINE = {
    "processor": "P",
    "cores": "2",
    "isa": "avx2",
    "platform": "Linux x86_64",
    "python": "3.12",
    "torch": "2.13",
    "sparsekern": "0.1.0",
    "torch_cka": "0.21",
    "ckatorch": "absent",
    "pytorch_cka": "1.1.3",
}
_SETTINGS = {
    "backend": "cpu",
    "dtype": "float32",
    "threads": 2,
    "matmul_precision": "highest",
    "quick": False,
}


def _results(**changes):
    case = CaseResult(
        id="S1",
        suite="similarity",
        title="matrix",
        reason="a network",
        rows=[
            Row(
                "sparsekern", "sparsekern", seconds=0.1, low=0.09, high=0.11, samples=9, error=1e-7
            ),
            Row(
                "eager",
                "eager",
                seconds=0.25,
                low=0.2,
                high=0.3,
                samples=9,
                error=1e-6,
                host_seconds=2e-5,
                group="eager",
            ),
            Row(
                "eager_centred",
                "eager, column-centred",
                seconds=0.05,
                samples=9,
                error=1e-6,
                group="eager",
            ),
            Row(
                "torch_cka",
                "torch_cka",
                "wrong",
                "error 1, bound 1e-05",
                4.0,
                4.0,
                4.0,
                3,
                1.0,
                group="torch_cka",
            ),
            Row(
                "pytorch_cka",
                "pytorch-cka",
                seconds=0.3,
                low=0.2,
                high=0.4,
                samples=2,
                error=0.0,
                group="pytorch-cka",
            ),
            Row(
                "ckatorch",
                "ckatorch",
                "absent",
                "ckatorch is not installed",
                group="ckatorch",
            ),
        ],
        summary=True,
        floor_seconds=0.08,
        floor_limit="operations",
        error_bound=1e-5,
        measured={"date": "2025-01-01", "commit": "abc"},
    )
    settings = _SETTINGS | changes
    return Results(dict(_MACHINE), settings, {"flops": 3e11, "bandwidth": 2e10}, [case])


def test_json_round_trip():
    original = _results()
    assert results.from_json(results.to_json(original)) == original
    with pytest.raises(ValueError, match="schema None"):
        results.from_json("{}")


def test_saving_replaces_cases_and_keeps_others(tmp_path):
    order = ["S1", "S2"]
    first = _results()
    first.cases[0].id = "S2"
    results.save(first, tmp_path, order)
    path = results.save(_results(), tmp_path, order)
    assert path.name == "cpu-2-threads-float32.json"
    (loaded,) = results.load_folder(tmp_path)
    assert [case.id for case in loaded.cases] == order
    other = _results()
    other.machine["processor"] = "Q"
    with pytest.raises(ValueError, match="another machine"):
        results.save(other, tmp_path, order)


def test_rows_that_were_not_measured_again_keep_what_they_were_measured_beside(tmp_path):
    results.save(_results(), tmp_path, ["S1"])
    new = _results()
    (case,) = new.cases
    ours, eager, *_ = case.rows
    case.rows = [dataclasses.replace(ours, seconds=0.2), dataclasses.replace(eager, seconds=0.4)]
    case.measured = {"date": "2025-01-02", "commit": "def"}
    results.save(new, tmp_path, ["S1"], replace="rows")
    (loaded,) = results.load_folder(tmp_path)
    (merged,) = loaded.cases
    assert [row.name for row in merged.rows] == [row.name for row in _results().cases[0].rows]
    assert merged.ratio(merged.row("eager")) == pytest.approx(2)
    assert merged.ratio(merged.row("eager_centred")) == pytest.approx(0.5)  # as in its own run
    note = "beside 100 ms of sparsekern, 2025-01-01, commit abc"
    assert any(note in line and "eager, column-centred" in line for line in table.notes(merged))
    case.rows = [dataclasses.replace(ours, seconds=0.3, samples=1), eager]
    results.save(new, tmp_path, ["S1"], replace="rows")
    ((again,),) = (one.cases for one in results.load_folder(tmp_path))
    assert again.rows[0].seconds == 0.2  # timed more often
    assert again.ratio(again.row("eager")) == pytest.approx(0.25 / 0.3)
    case.rows = [ours, eager]
    results.save(new, tmp_path, ["S1"])  # all contenders ran: nothing older stays
    ((only,),) = (one.cases for one in results.load_folder(tmp_path))
    assert [row.name for row in only.rows] == ["sparsekern", "eager"]


def test_memory_alone_is_added_to_what_is_there(tmp_path):
    measured = _results()
    with pytest.raises(ValueError, match="memory alone is added to times that are"):
        results.save(measured, tmp_path, ["S1"], replace="memory")
    results.save(_results(), tmp_path, ["S1"])
    for row in measured.cases[0].rows[:2]:
        row.seconds, row.extra_bytes = None, 1 << 20
    results.save(measured, tmp_path, ["S1"], replace="memory")
    (loaded,) = results.load_folder(tmp_path)
    ours, eager, centred, *_ = loaded.cases[0].rows
    assert (ours.seconds, ours.extra_bytes, eager.extra_bytes) == (0.1, 1 << 20, 1 << 20)
    assert centred.extra_bytes is None


def test_tables_show_every_row_and_why_one_is_missing():
    text = report.tables([_results()])
    assert "| eager | 250 ms | ±20% | 2.50× | 32% | 1e-06 | 20.0 µs | – |" in text
    assert "| eager, column-centred | 50.0 ms | – | 0.50× |" in text  # a losing row stays in
    assert "| torch_cka | 4.00 s* | ±0% | wrong |" in text
    assert "| ckatorch | absent |" in text
    assert "ckatorch: absent, ckatorch is not installed" in text
    assert "floor 80.0 ms, set by operations" in text
    assert "Nothing has been measured on a GPU yet" in text
    measured = _results(device="cuda")
    measured.machine["gpu"] = "G"
    assert "Nothing has been measured" not in report.tables([_results(), measured])


def test_cases_of_a_series_share_a_table():
    measured = _results()
    (case,) = measured.cases
    other = dataclasses.replace(case, id="S1-far", rows=case.rows[:3])
    for result, x in ((case, 0.9), (other, 0.5)):
        result.series = {"family": "M", "x_name": "sparsity", "x": x, "order": "nnz"}
    measured.cases.append(other)
    lines = report.tables([measured]).splitlines()
    assert "#### S1, S1-far: M" in lines
    assert "A network. Predicted order: nnz." in lines
    start = lines.index(
        "| sparsity | sparsekern | of floor | error | memory | eager | eager, column-centred "
        "| torch_cka | pytorch-cka | ckatorch |"
    )
    ours = "| 100 ms | 80% | 1e-07 | – | 250 ms (2.50×) | 50.0 ms (0.50×) |"
    assert lines[start + 2] == f"| 0.5 {ours}  |  |  |"
    assert lines[start + 3] == f"| 0.9 {ours} 4.00 s* (wrong) | 300 ms* (3.00×) | absent |"
    assert "`sparsekern bench --suite similarity --threads 2 --out benchmarks/results`" in lines


def test_a_suite_has_one_table_with_a_line_for_each_case():
    measured = _results()
    (case,) = measured.cases
    alone = Row("partition", "numpy.partition", seconds=0.2, samples=9, error=0.0)
    other_work = Row("dense", "dense", seconds=0.01, samples=9)
    step = Row("sparsekern", "sparsekern", seconds=1e-4, samples=9, step_share=0.00512)
    measured.cases = [
        dataclasses.replace(case, rows=[*case.rows, alone, other_work]),
        dataclasses.replace(case, id="R1", title="a step", rows=[step], floor_seconds=None),
    ]
    lines = report.suites([measured]).splitlines()
    start = lines.index(
        "| case |  | sparsekern | of floor | error | memory | eager | torch_cka | pytorch-cka "
        "| ckatorch | others |"
    )
    assert lines[start + 1] == "|---|---" + "|---:" * 9 + "|"
    assert lines[start + 2] == (
        "| S1 | matrix | 100 ms | 80% | 1e-07 | – | 50.0 ms (0.50×) | wrong | 300 ms (3.00×) "
        "| absent | numpy.partition 200 ms (2.00×) |"
    )
    assert lines[start + 3] == "| R1 | a step | 100 µs | 0.51% | – | – |  |  |  |  |  |"
    assert lines[start + 5] == "Measured 2025-01-01, commit abc."
    assert (
        lines.count("`sparsekern bench --suite similarity --threads 2 --out benchmarks/results`")
        == 1
    )


def test_summary_takes_the_fastest_right_entry_point():
    (line,) = [line for line in report.summary([_results()]).splitlines() if "matrix |" in line]
    assert line == "| matrix | 100 ms | 50.0 ms (0.50×) | wrong | 300 ms (3.00×) | absent |"


def test_summary_tells_the_share_of_a_step_and_the_cost_of_a_call():
    measured = _results()
    step = Row("sparsekern", "sparsekern", seconds=1e-4, samples=9, step_share=0.00512)
    call = [
        Row("sparsekern", "sparsekern", seconds=5e-6, samples=9),
        Row("torch_mul", "torch.mul", seconds=1e-6, samples=9),
    ]
    measured.cases += [
        CaseResult("R1", "regularizers", "CKA-SR in a step", "r", [step], summary=True),
        CaseResult("O1", "similarity", "host cost of a call", "r", call, summary=True),
    ]
    text = report.summary([measured])
    assert "CKA-SR in a step takes 0.51% of the step's time." in text
    assert "Host cost of a call: 5.00 µs (torch.mul 1.00 µs)." in text


def test_times_that_are_lost_in_noise_have_no_ratio():
    (case,) = _results().cases
    ours, eager, *_ = case.rows
    assert case.ratio(eager) == pytest.approx(2.5)
    eager.seconds = -0.1
    assert case.ratio(eager) is None
    ours.seconds, eager.seconds = -0.1, 0.1
    assert case.ratio(eager) is None
    ours.seconds, ours.low = 0.1, -0.1
    assert case.ratio(eager) is None
    assert table.ratio_text(case, eager) == "–"


def test_filling_keeps_what_is_written_by_hand():
    text = "hand\n<!-- bench:summary -->\nold\n<!-- /bench:summary -->\nnotes\n"
    filled = report.fill(text, [_results()])
    assert filled.startswith("hand\n")
    assert filled.endswith("<!-- /bench:summary -->\nnotes\n")
    assert "old" not in filled
    assert report.fill(filled, [_results()]) == filled
    with pytest.raises(ValueError, match="unknown block"):
        report.fill(text.replace("summary", "other"), [])
    with pytest.raises(ValueError, match="found no"):
        report.fill("nothing here", [])


def test_quick_runs_are_not_documented(tmp_path):
    results.save(_results(quick=True), tmp_path, ["S1"])
    assert report.committed(tmp_path) == []


_GENERATED = ["README.md", "docs/performance.md", "docs/measurements.md"]


@pytest.mark.parametrize("name", _GENERATED)
def test_documents_agree_with_the_committed_results(name):
    text = (_ROOT / name).read_text(encoding="utf-8")
    committed = report.committed(_ROOT / report.RESULTS_FOLDER)
    assert text == report.fill(text, committed), (
        f"{name} and benchmarks/results differ: run sparsekern bench --report {name}"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.50 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (-2e-3, "-2.00 ms"), (None, "–")],
)
def test_times_have_three_digits(seconds, text):
    assert table.time_text(seconds) == text


def _python_blocks():
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("code", _python_blocks())
def test_the_readme_runs_as_written(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_shows_its_three_uses():
    assert len(_python_blocks()) >= 3
