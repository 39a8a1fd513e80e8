"""The same script, one import changed: torch_cka's numbers where torch_cka is right."""

import warnings

import matplotlib
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsekern.compat.torch_cka import CKA

matplotlib.use("agg")
_LAYERS = ["0", "1", "3", "4"]


def _net(inplace=False):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace),
        nn.Conv2d(4, 5, 3),
        nn.Flatten(),
        nn.Linear(80, 3),
    )


def _loader(samples=32, **options):
    images = torch.randn(samples, 1, 8, 8)
    return DataLoader(TensorDataset(images, torch.zeros(samples)), batch_size=8, **options)


def _peer(*args, **options):
    package = pytest.importorskip("torch_cka")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package.CKA(*args, **options)


def _arguments(nets, **options):
    return {
        "model1_name": "A",
        "model2_name": "B",
        "model1_layers": _LAYERS,
        "model2_layers": _LAYERS[1:],
        **options,
    }


def test_numbers_keys_and_types_agree():
    nets, loader = (_net(), _net()), _loader()
    results = []
    for make in (CKA, _peer):
        comparison = make(*nets, **_arguments(nets))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch_cka's notice about one loader
            assert comparison.compare(loader) is None
        results.append(comparison.export())
    ours, theirs = results
    assert list(ours) == list(theirs)
    assert ours["CKA"].dtype == theirs["CKA"].dtype
    torch.testing.assert_close(ours["CKA"], theirs["CKA"], atol=1e-4, rtol=0)
    for key in set(ours) - {"CKA"}:
        assert ours[key] == theirs[key]


def test_models_are_put_into_evaluation_mode():
    net = _net().train()
    CKA(net, net, "a", "b", ["0"], ["0"])
    assert not net.training


def test_an_in_place_module_is_where_the_numbers_differ():
    copying, in_place = _net(), _net(inplace=True)
    in_place.load_state_dict(copying.state_dict())
    loader = _loader()
    matrices = []
    for net in (copying, in_place):
        comparison = CKA(net, net, "a", "b", ["1", "2"], ["1", "2"])
        comparison.compare(loader)
        matrices.append(comparison.export()["CKA"])
    assert torch.equal(*matrices)
    theirs = _peer(in_place, in_place, "a", "b", ["1", "2"], ["1", "2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.compare(loader)
    assert theirs.export()["CKA"][0, 1] == pytest.approx(1, abs=1e-5)
    assert matrices[0][0, 1] < 0.98


@pytest.mark.filterwarnings("ignore:Dataloader for Model 2")
def test_a_small_last_batch_is_where_they_differ():
    net, loader = _net(), _loader(samples=33)
    comparison = CKA(net, net, "a", "b", ["0"], ["3"])
    comparison.compare(loader)
    assert torch.isfinite(comparison.hsic_matrix).all()
    theirs = _peer(net, net, "a", "b", ["0"], ["3"])
    with pytest.raises((AssertionError, ZeroDivisionError)):
        theirs.compare(loader)


def test_without_names_all_modules_are_compared():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))).eval()
    comparison = CKA(net, net, "a", "b")
    comparison.compare([(torch.randn(8, 4), 0)])
    assert comparison.export()["model1_layers"] == ["0", "1", "1.0"]


def test_equal_names_and_many_layers_are_told():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="both models are called 'Sequential'"):
        CKA(net, net)
    large = nn.Sequential(*(nn.Linear(2, 2) for _ in range(160)))
    with pytest.warns(UserWarning, match="model2 has 161 modules"):
        CKA(net, large, "a", "b")


def test_pictures_are_written(tmp_path):
    net = _net()
    comparison = CKA(net, net, "a", "b", _LAYERS, _LAYERS)
    with pytest.raises(RuntimeError, match="call compare"):
        comparison.plot_results()
    comparison.compare(_loader())
    comparison.plot_results(save_path=str(tmp_path / "p.png"), title="T")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_unknown_layers_are_an_error():
    with pytest.raises(ValueError, match="'7' matches no layer"):
        CKA(_net(), _net(), "a", "b", ["7"], ["0"])
