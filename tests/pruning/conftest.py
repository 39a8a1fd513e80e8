"""Gives the tests the small network and the methods of networks.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("networks", Path(__file__).with_name("networks.py"))
networks = importlib.util.module_from_spec(_spec)
sys.modules["networks"] = networks
_spec.loader.exec_module(networks)


@pytest.fixture
def nets():
    return networks


@pytest.fixture
def model():
    return networks.network()


def pytest_generate_tests(metafunc):
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", list(networks.METHODS))
