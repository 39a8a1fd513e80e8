"""When the CUDA kernels are taken, and what is said where they cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch, native

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _fresh_answers() -> Iterator[None]:
    dispatch._cuda_refuses.cache_clear()
    yield
    dispatch._cuda_refuses.cache_clear()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Kernels built with CUDA 12.8, a driver that serves 12.4, a torch with CUDA, and a GPU."""
    module = SimpleNamespace(
        emulated=False,
        runtime_version=lambda: 12080,
        driver_version=lambda: 12040,
        refusal=lambda device: "",
    )
    monkeypatch.setattr(native, "_load_cuda", lambda: (module, ""))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return module


@pytest.mark.usefixtures("kernels")
def test_auto_takes_them_for_operators_that_have_some() -> None:
    assert dispatch.select(GPU, has_cuda=True) == "cuda"
    assert dispatch.select(CPU, has_cuda=True) != "cuda"
    with sk.backend("cuda"):
        assert dispatch.select(GPU) == "cuda"
        with pytest.raises(RuntimeError, match=r"NVIDIA GPU tensors, and these are on cpu"):
            dispatch.select(CPU)


@pytest.mark.usefixtures("kernels")
def test_asked_for_where_a_family_has_none() -> None:
    from sparsekern.ops import registry
    from sparsekern.ops.masked import cpu, reference

    with sk.backend("cuda"), pytest.raises(RuntimeError, match="no kernels for masked operators"):
        registry.back_end(GPU, reference, cpu)


def test_a_device_that_was_not_built_for(kernels: SimpleNamespace) -> None:
    kernels.refusal = lambda device: f"no kernel image for device {device}"
    assert dispatch.select(GPU, has_cuda=True) != "cuda"
    expected = "do not load on device 0: no kernel image for device 0"
    with sk.backend("cuda"), pytest.raises(RuntimeError, match=expected):
        dispatch.select(GPU)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (0, "no NVIDIA driver is installed"),
        (11080, r"built with CUDA 12\.8, and the installed driver serves CUDA 11\.8 at most"),
    ],
)
def test_drivers_that_do_not_do(kernels: SimpleNamespace, driver: int, reason: str) -> None:
    kernels.driver_version = lambda: driver
    with pytest.raises(RuntimeError, match=reason):
        sk.backend("cuda").__enter__()


def test_torch_without_a_gpu(kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.missing_reason("cuda") == "torch sees no GPU here"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in dispatch.missing_reason("cuda")
    assert f"built with CUDA {native.cuda_build()}" in str(sk.info())


def test_a_module_that_is_not_there_gives_its_reason() -> None:
    code = (
        "import sys; sys.modules['sparsekern._cuda'] = None\n"
        "import sparsekern as sk\n"
        "from sparsekern import native\n"
        "assert native.cuda_missing_reason() in str(sk.info()).replace('\\n' + ' ' * 13, '\\n')\n"
        "assert native.cuda_build() == ''\n"
        "sk.backend('cuda').__enter__()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError: the cuda back end is not available: " in result.stderr
