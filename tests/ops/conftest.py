"""Every test of an operator runs once per back end that works here, on poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch, native

from . import emulation

BACKENDS = [name for name in ("reference", "cpu") if dispatch.missing_reason(name) == ""]

# For tests of what the reference does not have, or that prove nothing on plain PyTorch.
compiled_only = pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)

# Where tests of the CUDA kernels run them.
CUDA_DEVICES = [
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available() or bool(dispatch.missing_reason("cuda")),
                reason="no GPU, or no CUDA kernels were built",
            ),
        ],
    ),
    "emulated",
]

# For tests of what emulation cannot show, such as waiting for the device.
gpu_only = pytest.mark.parametrize("cuda_device", CUDA_DEVICES[:1], indirect=True)


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with sk.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills fresh tensors with NaN, so that a read of memory nobody wrote shows in the result."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def emulated_cuda() -> ModuleType:
    """The CUDA kernels as they run on the CPU."""
    if emulation.COMPILER is None:
        pytest.skip("no C++ compiler to build the emulated kernels with")
    return emulation.module()


@pytest.fixture(params=CUDA_DEVICES)
def cuda_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the test on the CUDA kernels: on a GPU where there is one, and always emulated."""
    if request.param != "cuda":
        module = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(native, "_load_cuda", lambda: (module, ""))
    else:  # sums in float32 throughout, as the bounds of the tests have them
        for name in (
            "allow_bf16_reduced_precision_reduction",
            "allow_fp16_reduced_precision_reduction",
        ):
            monkeypatch.setattr(torch.backends.cuda.matmul, name, False)
    dispatch._cuda_refuses.cache_clear()
    with sk.backend("cuda"):
        yield "cuda" if request.param == "cuda" else "cpu"
    dispatch._cuda_refuses.cache_clear()
