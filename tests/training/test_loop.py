import pytest
import torch
from torch.nn import functional

import sparsekern as sk
from sparsekern.training import loop
from sparsekern.training.measure import block_features, block_similarity
from sparsekern.training.models import similarity_groups
from sparsekern.training.settings import default_settings

OPTIONS = {
    "model": "resnet8",
    "width": 4,
    "sparsity": 0.9,
    "beta": 0.1,
    "every": 2,
    "seeds": 1,
    "epochs": 2,
}


def make_run(regularizer="ckasr", seed=0, **changes):
    options = {**OPTIONS, **changes, "regularizer": regularizer}
    return loop.TrainingRun(default_settings(options, demo=False), regularizer, seed)


def finish(run, steps=None):
    records = []
    while not run.finished and steps != 0:
        records.append(run.step())
        steps = None if steps is None else steps - 1
    return [record for record in records if record]


def assert_same_state(first, second):
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def without_time(record):
    return {key: value for key, value in record.items() if key != "seconds"}


def test_masked_weights_stay_exactly_zero():
    run = make_run()
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    for _ in range(15):
        run.step()
        for name, mask in run.pruner.masks.items():
            weight = run.model.get_parameter(name)
            assert torch.count_nonzero(weight[~mask]) == 0
    for name, mask in run.pruner.masks.items():
        weight = run.model.get_parameter(name)
        assert not torch.equal(weight[mask], before[name][mask])
    assert run.result()["kept"] == run.pruner.kept


@pytest.mark.parametrize("regularizer", ["none", "ckasr", "augckasr"])
def test_a_seed_determines_a_run(regularizer):
    first, second = make_run(regularizer), make_run(regularizer)
    records = finish(first)
    torch.rand(3)  # the global random state plays no part
    assert records == finish(second)
    assert_same_state(first, second)
    assert without_time(first.result()) == without_time(second.result())


def test_runs_of_one_seed_differ_in_the_loss_only():
    with_it, without = make_run("ckasr"), make_run("none")
    assert_same_state(with_it, without)
    assert torch.equal(with_it.data.train.images, without.data.train.images)
    zero = make_run("ckasr", beta=0.0)
    assert [r["train_loss"] for r in finish(zero)] == [r["train_loss"] for r in finish(without)]
    assert_same_state(zero, without)


def test_another_seed_gives_another_network():
    first, second = make_run(seed=0), make_run(seed=1)
    assert not torch.equal(first.pruner.masks["fc.weight"], second.pruner.masks["fc.weight"])
    assert not torch.equal(first.data.train.labels, second.data.train.labels)


@pytest.mark.parametrize("steps", [0, 5, 12, 19])
@pytest.mark.parametrize("regularizer", ["ckasr", "none"])
def test_going_on_from_a_saved_state_is_exact(regularizer, steps, tmp_path):
    # every=5 leaves the regulariser between two collecting steps at each of these stops but 0.
    whole, first = make_run(regularizer, every=5), make_run(regularizer, every=5)
    expected = finish(whole)
    records = finish(first, steps)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_run(regularizer, every=5)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.steps_done == steps
    assert records + finish(second) == expected
    assert_same_state(second, whole)
    assert without_time(second.result()) == without_time(whole.result())


def test_the_first_step_is_that_of_the_recipe():
    """Nesterov SGD on cross-entropy plus the penalty on 8 samples, written out once more."""
    run, copy = make_run("ckasr"), make_run("ckasr")
    indices = copy._loader._batches(0)[0]
    images, labels = copy.data.train.images[indices], copy.data.train.labels[indices]
    model = copy.model.train()
    groups = similarity_groups("resnet8")
    copy.close()
    features = block_features(model, groups[0], images)
    penalty = 0.1 * sk.cka_sum([[x[:8] for x in features]])
    loss = functional.cross_entropy(model(images), labels) + penalty
    loss.backward()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    optimizer.step()
    run.step()
    for name, parameter in run.model.named_parameters():
        expected = model.get_parameter(name).detach()
        if name in run.pruner.masks:
            expected = expected * run.pruner.masks[name]
        assert torch.allclose(parameter, expected, atol=1e-5), name


def test_learning_rate_drops_at_a_half_and_three_quarters():
    run = make_run("none", epochs=8)
    rates = []
    for epoch in range(8):
        run.epoch = epoch
        run._set_learning_rate()
        rates.append(run._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_the_regulariser_lowers_what_it_measures():
    results = [
        finish(run := make_run(loss, beta=1.0, every=1, epochs=6)) and run.result()
        for loss in ("none", "ckasr")
    ]
    assert results[1]["interlayer_cka"] < results[0]["interlayer_cka"] - 0.02


def test_similarity_is_that_of_the_operator():
    run = make_run("none")
    images = run.data.held_out.images
    groups = [["stage1.0", "stage2.0"], ["stage3.0"]]
    found = block_similarity(run.model, groups, images)
    features = block_features(run.model.eval(), [b for g in groups for b in g], images)
    matrix = sk.cka_matrix(features)
    assert torch.allclose(torch.tensor(found.matrix), matrix, atol=1e-6)
    assert found.inside_groups == pytest.approx(matrix[0, 1].item(), abs=1e-6)
    pairs = (matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3
    assert found.all_pairs == pytest.approx(pairs.item(), abs=1e-6)


def test_closing_leaves_no_hooks():
    run = make_run("ckasr")
    run.close()
    for module in run.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_loss_that_is_not_finite_is_told():
    run = make_run("none")
    run.step()
    with torch.no_grad():
        run.model.fc.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite|no longer finite"):
        finish(run)
