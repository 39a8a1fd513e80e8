"""Recipes: those that come with the package, files of one's own, and what options do to them."""

import re
import sys
import types

import pytest

from sparsekern.training.catalogue import DATA, METHODS, MODELS, REGULARIZERS
from sparsekern.training.recipe import load_recipe, recipe_names
from sparsekern.training.settings import ALL_SAMPLES, Settings, default_settings


def settings_of(name, **given):
    return default_settings(given, recipe=load_recipe(name).values)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_whole(name):
    recipe = load_recipe(name)
    settings = settings_of(name)
    assert settings.recipe == name
    assert recipe.title
    assert recipe.source
    assert recipe.reported or name == "quick"
    # What a recipe says of its own method and regularisers is in use.
    for part in recipe.values["options"]:
        in_use = {settings.method, *settings.regularizer, "ap"}
        assert part in in_use or name == "quick"
    if re.search(r"\d{4}\.\d{5}", recipe.source) and "digits" not in name:
        assert settings.data != "digits"


def test_ckasr_is_that_of_the_released_example():
    settings = settings_of("ckasr-cifar10-resnet20")
    assert (settings.method, settings.regularizer, settings.sparsity) == ("rst", ("ckasr",), 0.95)
    assert (settings.beta, settings.samples, settings.every) == (1e-4, 8, 5)
    assert (settings.lr, settings.momentum, settings.nesterov) == (0.1, 0.9, True)
    assert (settings.weight_decay, settings.batch_size, settings.epochs) == (5e-4, 128, 160)
    assert [share * settings.epochs for share in settings.milestones] == [80, 120]
    augmented = settings_of("augckasr-cifar100-resnet20")
    assert (augmented.beta, augmented.samples, augmented.every) == (0.1, ALL_SAMPLES, 1)


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "tinyimagenet"])
@pytest.mark.parametrize("model", ["resnet32", "vgg19"])
def test_art_is_that_of_the_paper(data, model):
    settings = settings_of(f"art-{data}-{model}")
    assert (settings.data, settings.model, settings.method) == (data, model, "art")
    assert (settings.weight_decay, settings.batch_size, settings.epochs) == (1e-4, 64, 160)
    assert settings.options["art"]["warmup"] == 60
    assert (settings.options["art"]["strength"], settings.options["art"]["growth"]) == (5e-6, 1.05)


def test_optg_and_ap_are_those_of_the_papers():
    large, small = settings_of("optg-imagenet-resnet50"), settings_of("optg-imagenet-mobilenet")
    assert (large.epochs, large.lr, large.batch_size, large.weight_decay) == (100, 0.1, 256, 1e-4)
    assert (small.epochs, small.lr, small.weight_decay) == (180, 0.05, 4e-5)
    for settings in (large, small):
        assert (settings.warmup, settings.schedule, settings.label_smoothing) == (5, "cosine", 0.1)
    ap = settings_of("ap-cifar10-resnet20")
    assert (ap.ap, ap.method, ap.epochs, ap.batch_size) == (True, "lth", 50, 64)
    assert pytest.approx(ap.sparsity, abs=1e-4) == 1 - 0.8**25


def test_options_come_before_the_recipe_and_its_other_options_stay():
    settings = settings_of("art-cifar10-vgg19", sparsity=0.5, options={"art": {"window": 5}})
    assert settings.sparsity == 0.5
    assert settings.options["art"]["window"] == 5
    assert settings.options["art"]["warmup"] == 60
    other = settings_of("art-cifar10-vgg19", method="gmp", model="resnet8")
    assert other.options == {}
    assert other.width == MODELS["resnet8"].width
    assert settings_of("quick", method="lth").options == {"lth": {"rounds": 2}}


def test_a_recipe_of_ones_own(train, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[train]\nmodel = "resnet8"\nwidth = 4\nepochs = 1\nseeds = 1\nmethod = "rigl"\n'
        "[options.rigl]\nfraction = 0.5\n"
    )
    assert train("--recipe", path, "--threads", 1, "--out", tmp_path / "run") == 0
    assert train("--resume", "--out", tmp_path / "run") == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train", "is no TOML"),
        ("[train]\nepoch = 3\n", "says epoch, which is not known; [train] can say model, width"),
        ("[training]\n", "says training, which is not known"),
        ("[train]\nepochs = 'ten'\n", "--epochs must be a whole number, got 'ten'"),
        ("[train]\nepochs = true\n", "--epochs must be a whole number, got True"),
        ("[train]\nlr = 'high'\n", "--lr must be a number, got 'high'"),
        ("[train]\nmodel = 3\n", "--model must be a word, got 3"),
        ("[train]\nregularizer = 3\n", "--regularizer must be a list, got 3"),
        ("[train]\nsparsity = 95\n", "--sparsity is the share of zeros"),
        ("[options]\ngmp = 3\n", "options belong to a table such as [options.gmp]"),
    ],
)
def test_wrong_recipes(refused, text, told, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert told in refused("--recipe", path, "--out", tmp_path / "run")


def test_recipes_that_are_not_there(refused, tmp_path):
    assert "or one of ap-cifar10-resnet20" in refused("--recipe", "best")
    assert "cannot be read: No such file" in refused("--recipe", tmp_path / "no.toml")
    assert "--recipe is known from" in refused("--resume", "--recipe", "quick", "--out", tmp_path)


def test_the_list_names_everything(train, capsys):
    assert train("--list") == 0
    text = capsys.readouterr().out
    for name in (*METHODS, *REGULARIZERS, *MODELS, *DATA, *recipe_names()):
        assert f"\n  {name} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_settings_of_a_recipe_can_be_stored():
    settings = settings_of("art-cifar100-resnet32")
    assert Settings(**settings.as_json()) == settings


def test_tensorboard_gets_every_epoch_where_it_is_installed(train, small, tmp_path, monkeypatch):
    written, opened = [], []

    class Writer:
        def __init__(self, folder, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, name, value, epoch):
            written.append((name, float(value), epoch))

        def close(self):
            opened.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("importlib.util.find_spec", _finds_tensorboard)
    assert train(*small, "--out", tmp_path) == 0
    assert opened == [(str(tmp_path / "tensorboard" / "ckasr-0"), 1), "closed"]
    names = {name for name, _, _ in written}
    assert {"accuracy", "train_loss", "sparsity", "dead_neurons/dynamic"} <= names
    assert {epoch for _, _, epoch in written} == {1, 2}


def _finds_tensorboard(name, *rest):
    import importlib.machinery

    return importlib.machinery.ModuleSpec(name, None) if name == "tensorboard" else None
