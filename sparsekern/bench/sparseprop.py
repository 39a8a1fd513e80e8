"""SparseProp's published method as a peer: ``sparseprop.cpp``, compiled here when it is needed.

For the benchmark alone, hence ``-march=native``. Its batches are features-major. "features-major"
gets and gives them so, as between layers that all work so; "with transposes" starts from the
operands of a layer, as ours does, and leaves results in its own layout. Both are called by hand,
one function after the other without autograd; "as a layer" is called through it, as users do.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .case import Contender
from .machine import describe
from .masked_peers import dense_gradient

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC"]


def contenders(kind: str) -> list[Contender]:
    """The peers of a masked linear layer: M1 forward, M2 with the masked weight gradient."""
    works = {"M1": (_forward, None), "M2": (_training, dense_gradient)}
    if kind not in works:
        return []
    work, finish = works[kind]
    ways: list[tuple[str, str, Callable[[dict[str, Any]], list[Tensor]]]] = [
        ("", "features-major", functools.partial(work, transpose=False)),
        ("_transposed", "with transposes", functools.partial(work, transpose=True)),
    ]
    if kind == "M2":
        ways.append(("_layer", "features-major, as a layer", _training_layer))
    return [
        Contender(
            f"sparseprop{name}",
            f"SparseProp, {label}",
            call,
            prepare=_prepare,
            finish=finish,
            missing=missing_reason,
            group="SparseProp",
        )
        for name, label, call in ways
    ]


@functools.cache
def missing_reason() -> str:
    """Why it cannot be compiled here, or an empty string."""
    try:
        _library()
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled peer, from a cache where this source was compiled before on such a machine."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no g++ to compile SparseProp with")
    key = " ".join(
        [_SOURCE.read_text(encoding="utf-8"), *_FLAGS, platform.node(), *_compiler(compiler)]
    )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsekern"
    path = folder / f"sparseprop-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as build:
            steps = [
                [compiler, *_FLAGS, "-c", str(_SOURCE), "-o", f"{build}/peer.o"],
                # No OpenMP library is named: its symbols are those of the runtime that torch has
                # loaded, as for sparsekern, so that both use the same threads.
                [compiler, "-shared", f"{build}/peer.o", "-o", f"{build}/peer.so"],
            ]
            for step in steps:
                done = subprocess.run(step, capture_output=True, text=True, check=False)
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["no message"])[0]
                    raise RuntimeError(f"g++ cannot compile SparseProp: {reason}")
            os.replace(f"{build}/peer.so", path)
    return ctypes.CDLL(str(path))


def _compiler(path: str) -> list[str]:
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return [version.stdout, describe()["processor"]]


def _prepare(inputs: dict[str, Any]) -> dict[str, Any]:
    weight, mask = inputs["weight"].detach(), inputs["mask"]
    csr = mask.to_sparse_csr()
    x, grad = inputs["x"].detach(), inputs["grad"]
    return {
        "begin": csr.crow_indices().int(),
        "column": csr.col_indices().int(),
        "values": weight[mask],
        "mask": mask,
        "x": x,
        "grad": grad,
        "x_features": x.T.contiguous(),
        "grad_features": grad.T.contiguous(),
    }


def _call(function: str, state: dict[str, Any], *tensors: Tensor) -> None:
    rows, columns = state["mask"].shape
    dtype = str(state["values"].dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise TypeError(f"SparseProp is compiled for float32 and float64, got {dtype}")
    addresses = [ctypes.c_void_p(x.data_ptr()) for x in tensors]
    getattr(_library(), f"sparseprop_{function}_{dtype}")(
        *(ctypes.c_void_p(state[name].data_ptr()) for name in ("begin", "column", "values")),
        *(ctypes.c_int64(size) for size in (rows, columns, state["x"].shape[0])),
        *addresses,
        ctypes.c_int(torch.get_num_threads()),
    )


def _features(state: dict[str, Any], name: str, transpose: bool) -> Tensor:
    features: Tensor = state[name].T.contiguous() if transpose else state[f"{name}_features"]
    return features


def _forward(state: dict[str, Any], *, transpose: bool) -> list[Tensor]:
    x = _features(state, "x", transpose)
    out = x.new_empty(state["mask"].shape[0], x.shape[1])
    _call("forward", state, x, out)
    return [out.T]


def _training(state: dict[str, Any], *, transpose: bool) -> list[Tensor]:
    (out,) = _forward(state, transpose=transpose)
    # What the forward pass has transposed is kept for the backward pass.
    x_grad, values_grad = _gradients(state, _features(state, "grad", transpose))
    return [out, x_grad.T, values_grad, state["mask"]]


def _gradients(state: dict[str, Any], grad: Tensor) -> tuple[Tensor, Tensor]:
    x, values = state["x_features"], state["values"]
    x_grad, values_grad = torch.empty_like(x), torch.empty_like(values)
    scratch = values.new_empty(torch.get_num_threads() - 1, len(values))
    _call("backward", state, x, grad, x_grad, values_grad, scratch)
    return x_grad, values_grad


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, state: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.state = state
        out = x.new_empty(state["mask"].shape[0], x.shape[1])
        _call("forward", state, x, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *_gradients(ctx.state, grads[0]), None


def _training_layer(state: dict[str, Any]) -> list[Tensor]:
    leaves = [state[name].requires_grad_() for name in ("x_features", "values")]
    out: Tensor = _Layer.apply(*leaves, state)  # type: ignore[no-untyped-call]
    x_grad, values_grad = torch.autograd.grad(out, leaves, state["grad_features"])
    return [out.detach().T, x_grad.T, values_grad, state["mask"]]
