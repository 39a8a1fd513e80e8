"""A network and a recipe small enough to be trained many times over."""

import pytest
import torch

from sparsekern.cli import main
from sparsekern.training import building, cost, experiment


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_data():
    """Data read by one test are not those of the next."""
    building._load.cache_clear()


@pytest.fixture
def pictures():
    """Asked for by tests that look at pictures, or at what the regulariser costs."""


@pytest.fixture(autouse=True)
def brief_reports(request, monkeypatch):
    """All others draw nothing and time next to nothing at the end of a training."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(experiment, "_draw", lambda *_: None)
        monkeypatch.setattr(
            experiment, "measure_cost", lambda settings: cost.measure_cost(settings, rounds=1)
        )


@pytest.fixture
def small():
    """Options of a training of 2 epochs of 12 steps that takes a fraction of a second."""
    options = "--model resnet8 --width 4 --sparsity 0.9 --regularizer ckasr --beta 0.1 --every 2"
    return [*options.split(), "--seeds", "1", "--epochs", "2", "--threads", "1"]


@pytest.fixture
def train():
    """Runs ``sparsekern train`` in this process and returns its exit status."""

    def run(*options):
        return main(["train", *map(str, options)])

    return run


@pytest.fixture
def refused(train, capsys):
    """Runs a command that must fail with one line on stderr, and returns that line."""

    def run(*options):
        assert train(*options) == 2
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 1, captured.err
        return lines[0]

    return run
