"""``sparsekern compare``: models and data of every source, what is written, one line for errors."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.analysis import CKA, CKAResult, compare_features
from sparsekern.cli import main
from sparsekern.training.building import make_data
from sparsekern.training.loop import TrainingRun
from sparsekern.training.settings import default_settings
from sparsekern.training.store import Store, stored_settings

pytest.importorskip("sklearn")


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module of the user's own in the working directory."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(1)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 4))\n"
        "other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"
        "number = lambda: 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("sys.modules", sys.modules)
    yield tmp_path
    sys.modules.pop("mine", None)


def _features(n=30):
    torch.manual_seed(0)
    x = torch.randn(n, 6)
    return {"a": x, "b.c": torch.cat([x, torch.randn(n, 8)], 1), "b": torch.randn(n, 2, 3)}


def test_models_on_digits(factory, capsys):
    arguments = ["compare", "mine:build", "mine:other", "--data", "digits", "--layers", "all"]
    assert main([*arguments, "--samples", "100", "--batch-size", "32", "--out", "out/cka"]) == 0
    result = CKAResult.load("out/cka.npz")
    assert result.rows == ["0", "1", "2", "3"]
    assert result.columns == ["0", "1"]
    assert result.n == 100
    assert result.matrix[0, 0] == pytest.approx(1, abs=1e-5)  # the images themselves, in both
    assert {path.name for path in (factory / "out").iterdir()} == {"cka.npz", "cka.csv", "cka.png"}
    out = capsys.readouterr().out
    assert "mine:build against mine:other: 4 x 2 layers" in out
    assert "n=100, 4 batches" in out


def test_networks_of_the_catalogue_differ_in_their_weights(factory):
    arguments = ["compare", "lenet300", "lenet300", "--data", "digits", "--samples", "64"]
    assert main([*arguments, "--out", "two"]) == 0
    result = CKAResult.load("two.npz")
    assert result.models == ("lenet300 (1)", "lenet300 (2)")
    assert float(result.matrix.diagonal()[-1]) < 0.99


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".npy"])
@pytest.mark.parametrize("mode", ["exact", "minibatch"])
def test_files_of_features(suffix, mode, factory):
    features = _features()
    if suffix == ".npz":
        np.savez("f.npz", **{name: x.numpy() for name, x in features.items()})
    elif suffix == ".npy":
        np.save("f.npy", features["b"].numpy())
        features = {"f": features["b"]}
    else:
        pytest.importorskip("safetensors.torch").save_file(features, "f.safetensors")
    arguments = ["compare", f"f{suffix}", "--mode", mode, "--batch-size", "10", "--out", "r"]
    assert main(arguments) == 0
    result = CKAResult.load("r.npz")
    assert sorted(result.rows) == sorted(features)
    if mode == "exact":
        expected = sk.cka_matrix([features[name].double() for name in result.rows])
        torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)


def test_inputs_from_a_file(factory):
    images = torch.randn(40, 64)
    np.save("x.npy", images.numpy())
    assert main(["compare", "mine:build", "--data", "x.npy", "--out", "r"]) == 0
    import mine

    expected = CKA(mine.build().eval()).compare([images], progress=False)
    torch.testing.assert_close(CKAResult.load("r.npz").matrix, expected.matrix)
    np.savez("xs.npz", input=images.numpy(), labels=np.arange(40))
    assert main(["compare", "mine:build", "--data", "xs.npz", "--out", "r2"]) == 0
    torch.testing.assert_close(CKAResult.load("r2.npz").matrix, expected.matrix)


def test_a_folder_of_images(factory):
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for index in range(6):
        folder = factory / "photos" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (20 + index, 30, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{index}.png")
    arguments = ["compare", "resnet8", "--data", "photos", "--image-size", "16"]
    assert main([*arguments, "--layers", "stage1.*,stage2.*", "--out", "r"]) == 0
    result = CKAResult.load("r.npz")
    assert result.n == 6
    assert result.rows == ["stage1.0", "stage2.0"]


def _on_digits(model, settings):
    images = make_data(settings, 0).held_out
    batch = images.batch(torch.arange(len(images.labels)))
    return CKA(model.eval()).compare(batch.split(256), progress=False).matrix


def test_a_checkpoint_of_training(factory):
    settings = default_settings({"model": "lenet300", "width": 10, "epochs": 1, "seeds": 1})
    store = Store(factory / "run")
    store.start(settings)
    run = TrainingRun(settings, "none", 0)
    run.step()
    store.save_checkpoint(run.state_dict())
    run.close()
    assert main(["compare", "run", "--data", "digits", "--out", "r"]) == 0
    torch.testing.assert_close(CKAResult.load("r.npz").matrix, _on_digits(run.model, settings))


def test_finished_trainings(factory, capsys):
    options = "--model lenet300 --width 10 --method rst --sparsity 0.9 --epochs 1 --seeds 2"
    assert main(["train", *options.split(), "--regularizer", "none", "--out", "run"]) == 0
    assert main(["compare", "run", "--data", "digits"]) == 2
    weights = "run/weights/none-0.pt", "run/weights/none-1.pt"
    listed = ", ".join(weights)
    assert f"run holds several networks: give one of {listed}" in capsys.readouterr().err
    assert main(["compare", *weights, "--data", "digits", "--out", "r"]) == 0
    found = CKAResult.load("r.npz")
    assert found.models == weights
    # With one network left the folder says which.
    (factory / weights[1]).unlink()
    assert main(["compare", "run", "--data", "digits", "--out", "r"]) == 0
    settings = stored_settings(factory / "run")
    run = TrainingRun(settings, "none", 0)
    while not run.finished:
        run.step()
    run.close()
    torch.testing.assert_close(CKAResult.load("r.npz").matrix, _on_digits(run.model, settings))
    (factory / "run" / "config.json").unlink()
    assert main(["compare", weights[0], "--data", "digits"]) == 2
    assert "run holds no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
def test_libraries(library, factory, monkeypatch):
    calls = []

    def build(*args, **kwargs):
        calls.append((args, kwargs))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

    package = ModuleType(library)
    package.get_model = package.create_model = build
    package.AutoModel = type("AutoModel", (), {"from_pretrained": staticmethod(build)})
    package.models = package
    monkeypatch.setitem(sys.modules, library, package)
    monkeypatch.setitem(sys.modules, f"{library}.models", package)
    arguments = ["compare", f"{library}/some", "--data", "digits", "--pretrained", "--out", "r"]
    assert main(arguments) == 0
    expected = {
        "torchvision": (("some",), {"weights": "DEFAULT"}),
        "timm": (("some",), {"pretrained": True}),
        "transformers": (("some",), {}),
    }
    assert calls == [expected[library]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine:build"], "--data is needed to run models"),
        (["mine:build", "--data", "nowhere"], "--data must be one of digits"),
        (["nothing", "--data", "digits"], "'nothing' is no model: expected package.module:factory"),
        (["mine:nothing", "--data", "digits"], "mine has no 'nothing'"),
        (["no_such_module:f", "--data", "digits"], "No module named 'no_such_module'"),
        (["mine:number", "--data", "digits"], "gave a int, not a torch.nn.Module"),
        (["timm/vit", "--data", "digits"], "timm/vit needs timm, which is not installed"),
        (["f.npy"], "f.npy does not exist"),
        (["f.npy", "mine:build"], "A and B must both be models or both be files of features"),
        (["mine:build", "--data", "digits", "--layers", "7"], "'7' matches no layer of the model"),
        (
            ["mine:build", "--data", "digits", "--batch-size", "0"],
            "--batch-size must be at least 1",
        ),
        (["mine:build", "--device", "gpu"], "--device gpu cannot be used: Expected one of cpu"),
        (["mine:build", "--out", "mine.py/cka"], "--out mine.py/cka cannot be made"),
        ([".", "--data", "digits"], "holds neither weights/ nor checkpoint.pt"),
        (["none.pt", "--data", "digits"], "none.pt does not exist"),
    ],
)
def test_errors_are_one_line(arguments, message, factory, capsys):
    assert main(["compare", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sparsekern compare: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_features_in_memory():
    features = _features()
    result = compare_features(features, batch_size=7, progress=False)
    expected = sk.cka_matrix([features[name].double() for name in result.rows])
    torch.testing.assert_close(result.matrix, expected, atol=1e-6, rtol=0)
    arrays = {name: x.numpy() for name, x in features.items()}
    two = compare_features(features, {"b": arrays["b"]}, progress=False)
    assert two.columns == ["b"]
    row = two.rows.index("b")
    assert two.matrix[row, 0] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match=r"features1\['b'\] has 5 samples and features1\['a'\] 30"):
        compare_features({"a": features["a"], "b": torch.ones(5, 2)})
    with pytest.raises(ValueError, match="features1 must map at least one"):
        compare_features({})
