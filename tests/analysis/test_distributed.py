"""Ranks that share the data give the result of one process."""

from pathlib import Path

import pytest
import torch


def _tasks(tools):
    batches = [tools.correlated(n, (3, 40, 150), s) for s, n in enumerate((12, 9, 17, 8, 5))]

    def task(**fields):
        return {"batches": batches, "options": {}, "moments": None, **fields}

    return {
        "minibatch": task(options={"permutations": 99}),
        "bootstrap": task(options={"standard_error": "bootstrap"}),
        "moments": task(options={"mode": "exact"}, moments=(0, 1, 2)),
        "tiles": task(options={"mode": "exact"}, moments=()),
        "mixed": task(options={"mode": "exact"}, moments=(0, 1)),
        "rbf": task(options={"mode": "exact", "kernel": "rbf"}, moments=()),
        "polynomial": task(options={"mode": "exact", "kernel": "polynomial"}, moments=()),
        "few": task(batches=batches[:1]),
        "few, biased": task(batches=batches[:1], options={"estimator": "biased"}),
        "few, exact": task(batches=batches[:1], options={"mode": "exact"}),
        "spoiled": task(spoil=1),
        "spoiled, exact": task(spoil=1, options={"mode": "exact"}, moments=(0,)),
    }


def _run(tasks, world, folder, run_ranks):
    torch.save(list(tasks.values()), folder / "input.pt")
    run_ranks(Path(__file__).with_name("distributed_worker.py"), world)
    outputs = [torch.load(folder / f"output{rank}.pt") for rank in range(world)]
    return [dict(zip(tasks, output, strict=True)) for output in outputs]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_with_one_process(world, tools, run_ranks, tmp_path):
    tasks = _tasks(tools)
    ranks = _run(tasks, world, tmp_path, run_ranks)
    for name in ("minibatch", "bootstrap", "moments", "tiles", "mixed", "rbf", "polynomial"):
        options = tasks[name]["options"]
        alone = tools.compare_given(tasks[name]["batches"], **options)
        for found in (rank[name] for rank in ranks):
            torch.testing.assert_close(found["matrix"], alone.matrix, atol=1e-6, rtol=0)
            assert (found["n"], found["batches"]) == (alone.n, alone.batches)
            assert found["rows"] == alone.rows
            assert torch.equal(found["matrix"], ranks[0][name]["matrix"])
            if name == "minibatch":
                torch.testing.assert_close(
                    found["standard_error"], alone.standard_error, atol=1e-6, rtol=0
                )
                assert found["p_values"][0, 1] == pytest.approx(0.01)
    few = tools.compare_given(tasks["few"]["batches"])
    levels = tools.compare_given(tasks["few"]["batches"], estimator="biased").chance_levels
    for number, rank in enumerate(ranks):
        torch.testing.assert_close(rank["few, biased"]["chance_levels"], levels)
        # Ranks without data see the result of the others.
        torch.testing.assert_close(rank["few"]["matrix"], few.matrix, atol=1e-6, rtol=0)
        assert "every rank needs at least one batch" in rank["few, exact"]
        for name in ("spoiled", "spoiled, exact"):
            expected = "'taps.1' of model1 holds values that are not finite"
            assert expected in rank[name]
            assert ("rank 1 failed" in rank[name]) == (number != 1)
