"""Every method through the harness: exact sparsity, schedules, AP along with each."""

import json
import math

import pytest
import torch

from sparsekern import pruning
from sparsekern.training import loop
from sparsekern.training.catalogue import METHODS
from sparsekern.training.settings import default_settings

SMALL = {"model": "resnet8", "width": 4, "sparsity": 0.9, "seeds": 1, "epochs": 4}
EPOCHS = {"lth": 12, "art": 9}  # three rounds; one of warm-up, four, four
KINDS = {
    "rst": pruning.RST,
    "gmp": pruning.GMP,
    "lth": pruning.LTH,
    "set": pruning.SET,
    "rigl": pruning.RigL,
    "grasp": pruning.GraSP,
    "snip": pruning.SNIP,
    "art": pruning.ART,
    "optg": pruning.OptG,
}
PRUNING = tuple(name for name in METHODS if name != "dense")


def options_of(method):
    return {"lth": {"lth": {"rounds": 2}}}.get(method, {})


def make_run(method, seed=0, **changes):
    given = {**SMALL, "method": method, "options": options_of(method), **changes}
    settings = default_settings(given)
    return loop.TrainingRun(settings, settings.variants[-1], seed)


def finish(run, steps=None):
    records = []
    while not run.finished and steps != 0:
        records.append(run.step())
        steps = None if steps is None else steps - 1
    return [record for record in records if record]


def test_every_method_is_a_class_of_its_own():
    for method, kind in KINDS.items():
        assert type(make_run(method).pruner) is kind
    assert make_run("dense").pruner is None


@pytest.mark.parametrize("method", PRUNING)
def test_the_sparsity_is_exact_in_the_end_and_the_accuracy_that_of_the_sparse_network(method):
    run = make_run(method)
    records = finish(run)
    assert len(records) == EPOCHS.get(method, 4)
    result = run.result()
    assert result["kept"] == result["weights"] - math.floor(0.9 * result["weights"])
    nonzero = sum(
        int(torch.count_nonzero(run.model.get_parameter(name))) for name in result["layers"]
    )
    assert nonzero <= result["kept"]
    assert sum(kept for kept, _ in result["layers"].values()) == result["kept"]
    assert records[-1]["accuracy"] == result["accuracy"]
    assert records[-1]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert records[-1]["accuracy"] > 0.15  # chance is 0.1


def test_dense_training_prunes_nothing():
    run = make_run("dense", sparsity=0.0)
    finish(run)
    result = run.result()
    assert (result["kept"], result["weights"], result["layers"]) == (0, 0, {})
    assert all(torch.count_nonzero(p) > 0 for p in run.model.parameters())


def test_the_schedules_span_the_training():
    gmp = make_run("gmp", epochs=40).pruner  # 480 steps
    assert (gmp.begin, gmp.every, gmp.begin + gmp.events * gmp.every) == (0, 18, 360)
    rigl = make_run("rigl", epochs=40).pruner
    assert (rigl.end, rigl.every) == (360, 18)
    assert make_run("set").pruner.last_epoch == 4
    assert make_run("optg").pruner.total_epochs == 4
    given = {"options": {"gmp": {"every": 7, "end": 29}}}
    assert (make_run("gmp", **given).pruner.every, make_run("gmp", **given).pruner.events) == (7, 4)


@pytest.mark.parametrize(("once", "step"), [(0, 0), (0.5, 24), (1.0, 48)])
def test_magnitude_pruning_in_one_shot(once, step):
    """Dense, bit for bit, up to one step, then at once the largest weights of all layers."""
    run, dense = make_run("gmp", options={"gmp": {"once": once}}), make_run("dense", sparsity=0.0)
    for made in (run, dense):
        finish(made, steps=step)
    weights = {name: dense.model.get_parameter(name).detach() for name in run.pruner.masks}
    threshold = torch.cat([w.abs().flatten() for w in weights.values()]).sort().values
    threshold = threshold[math.floor(0.9 * len(threshold))]
    for name, mask in run.pruner.masks.items():
        assert torch.equal(mask, weights[name].abs() >= threshold), name
        assert torch.equal(run.model.get_parameter(name), weights[name] * mask), name
    masks = {name: mask.clone() for name, mask in run.pruner.masks.items()}
    records = finish(run)
    assert all(torch.equal(mask, masks[name]) for name, mask in run.pruner.masks.items())
    assert len(records) == 4 - step // 12
    assert run.pruner.kept == run.pruner.total - math.floor(0.9 * run.pruner.total)


def test_lottery_tickets_begin_anew_in_each_round():
    run = make_run("lth")
    assert run.epochs == 12
    first = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    records = finish(run, steps=4 * run.steps_per_epoch)
    for name, parameter in run.model.named_parameters():
        mask = run.pruner.masks.get(name, torch.ones(()))
        assert torch.equal(parameter, first[name] * mask), name
    records += finish(run)
    assert [record["lr"] for record in records] == pytest.approx([0.1, 0.1, 0.01, 0.001] * 3)
    sparsities = [record["sparsity"] for record in records]
    assert sparsities == pytest.approx([0] * 4 + [1 - 0.1**0.5] * 4 + [0.9] * 4, abs=1e-3)


def test_masks_of_one_seed_are_the_same_for_methods_that_begin_at_random():
    rst, rigl, other = make_run("rst"), make_run("rigl"), make_run("rst", seed=1)
    for name, mask in rst.pruner.masks.items():
        assert torch.equal(mask, rigl.pruner.masks[name])
    assert any(not torch.equal(m, other.pruner.masks[n]) for n, m in rst.pruner.masks.items())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "snip", "--set", "snip.batches=99"], "from 1 to the 12 of an epoch, got 99"),
        (["--method", "grasp", "--set", "grasp.temperature=0"], "temperature must be a positive"),
        (["--method", "gmp", "--set", "gmp.end=1", "--set", "gmp.every=9"], "--set gmp...: begin"),
        (["--method", "gmp", "--set", "gmp.once=2"], "gmp.once must be a share of the steps"),
        (["--method", "gmp", "--set", "gmp.once=true"], "from 0 to 1, got True"),
        (["--method", "gmp", "--set", "gmp.once=1", "--set", "gmp.end=9"], "leave out gmp.end"),
        (["--method", "optg", "--epochs", 1], "--set optg...: epochs must be at least 2"),
        (["--method", "rst", "--sparsity", 0.9999], "--method rst: sparsity 0.9999 leaves"),
        (["--regularizer", "layersparsity", "--set", "layersparsity.strength=-1"], "strength must"),
        (["--regularizer", "hypersparse", "--set", "hypersparse.growth=0"], "growth must"),
    ],
)
def test_wrong_options_of_methods(refused, options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused("--model", "resnet8", "--width", 4, *options)
    assert not list(tmp_path.iterdir())


def test_layer_sparsity_acts_through_its_proximal_step():
    options = {"layersparsity": {"strength": 4.0}}
    given = {"model": "mlp", "width": 16, "regularizer": ["layersparsity"], "options": options}
    run = make_run("dense", **given, sparsity=0.0)
    before = run.penalties["layersparsity"].negative()
    finish(run)
    after = run.penalties["layersparsity"].negative()
    assert all(share > 0.3 for share in before.values())
    assert min(after.values()) == 0


def test_merged_layers_are_told_and_the_smaller_network_is_as_good():
    options = {"layersparsity": {"strength": 1e3, "layers": ["fc4"]}}
    given = {"model": "mlp", "width": 16, "regularizer": ["layersparsity"], "options": options}
    run = make_run("dense", **given, sparsity=0.0)
    finish(run)
    result = run.result()
    assert result["merged"]["layers"] == ["fc4"]
    assert result["merged"]["parameters_before"] - result["merged"]["parameters"] == 17 * 16
    assert result["merged"]["accuracy"] == pytest.approx(result["accuracy"], abs=1 / 360)
    assert "merged" not in make_run("rst").result()


def test_a_network_that_cannot_be_traced_is_not_merged():
    given = {"model": "vgg19", "width": 2, "regularizer": ["layersparsity"]}
    run = make_run("dense", **given, sparsity=0.0)
    assert run.result()["merged"]["count"] == 0


@pytest.mark.parametrize("method", PRUNING)
def test_ap_goes_along_with_every_method_and_is_resumed(method, tmp_path):
    """To the same sparsity, by weights of its own, and exactly from any step."""
    run = make_run(method, ap=True)
    assert run.variant == "ap"
    first = make_run(method, ap=True)
    records = finish(first, steps=19)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_run(method, ap=True)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    records += finish(second)
    assert records == finish(run)
    result = run.result()
    assert result["kept"] == result["weights"] - math.floor(0.9 * result["weights"])
    assert run.pruner.pruned_by_ap > 0
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_arts_phases_and_their_learning_rates():
    options = {"art": {"warmup": 2, "max_epochs": 3, "strength": 1e-3}}
    run = make_run("art", options=options, epochs=4, warmup=1)
    assert run.epochs == 2 + 3 + 4
    records = finish(run)
    assert run.pruner.finetuned == 4
    assert len(run.pruner.history) == 3
    assert [record["sparsity"] for record in records] == pytest.approx(
        [0] * 5 + [0.9] * 4, abs=1e-3
    )
    rates = [record["lr"] for record in records]
    assert rates == pytest.approx([0.1] * 5 + [0.1, 0.1, 0.01, 0.001])
    assert [record["penalty"] for record in records] == [0] * 9  # its value is 0, its gradient not


def test_runs_of_different_lengths_are_drawn(train, tmp_path, monkeypatch, pictures):
    """ART's rule stops one seed sooner than the other; networks of many blocks are drawn too."""
    original = pruning.StopRule.update
    stops = iter([True, False, False])
    monkeypatch.setattr(
        pruning.StopRule, "update", lambda *values: bool(original(*values)) or next(stops)
    )
    words = "--method art --model resnet56 --width 2 --epochs 3 --seeds 2 --threads 1"
    words += " --set art.max_epochs=2 --set art.warmup=0"
    assert train(*words.split(), "--out", tmp_path) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    seeds = [json.loads(line)["seed"] for line in lines if '"epoch"' in line[:20]]
    assert [seeds.count(seed) for seed in (0, 1)] == [4, 5]
    assert (tmp_path / "accuracy.png").exists()
    assert (tmp_path / "cka.png").exists()


def test_art_without_a_limit_ends_when_its_rule_says():
    run = make_run("art", options={"art": {"max_epochs": None, "strength": 1.0}})
    assert run.epochs == 1 + 4 + 4
    while run.pruner.phase != "fine-tuning" and run.epoch < 40:
        run.step()
        assert run.epochs > run.epoch
    assert run.pruner.phase == "fine-tuning"
    assert run.epochs == run.epoch + 4
    finish(run)
    assert run.pruner.finetuned == 4


def test_hypersparse_grows_by_the_epoch():
    given = {"regularizer": ["hypersparse"], "options": {"hypersparse": {"growth": 2.0}}}
    run = make_run("rst", **given)
    finish(run)
    assert run.penalties["hypersparse"].alpha == pytest.approx(5e-6 * 2**4)
