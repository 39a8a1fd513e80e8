"""The masked operators on CUDA kernels as torch.library and torch.compile see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsekern as sk
from sparsekern.ops.masked import cuda_choice

from . import oracle

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture(autouse=True)
def backend(cuda_device: str) -> str:
    return cuda_device


def check(name: str, *arguments: Any) -> Any:
    operator = getattr(torch.ops.sparsekern, f"masked_cuda_{name}").default
    torch.library.opcheck(operator, arguments, test_utils=UTILITIES)
    return operator(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algorithm", ["unstructured", "dense"])
def test_linear_passes_opcheck(algorithm: str, dtype: torch.dtype, backend: str) -> None:
    x, weight, mask, bias = (t.to(backend) for t in oracle.problem(6, 20, 10, 0.7, dtype))
    pattern = sk.SparsityPattern(mask).tensors
    out, kept = check("linear", x, weight, bias, pattern, algorithm, True)
    check("linear", x, weight, None, pattern, algorithm, False)
    grad = torch.randn_like(out)
    for needs in ([True, True, True], [False, True, False], [True, False, True]):
        for straight_through in (False, True):
            rest = (pattern, needs, straight_through, algorithm, algorithm)
            check("linear_grad", grad, x, weight, kept, *rest)


def test_sparse_products_pass_opcheck(backend: str) -> None:
    mask = torch.rand(9, 14, device=backend) >= 0.5
    pattern = sk.SparsityPattern(mask)
    tensors = pattern.trimmed_tensors
    values = torch.randn(pattern.nnz, device=backend)
    a, b = torch.randn(9, 5, device=backend), torch.randn(14, 5, device=backend)
    check("spmm", values, b, tensors)
    check("sddmm", a, b.t(), tensors)
    for needs in ([True, True], [True, False], [False, True]):
        check("spmm_grad", a, values, b, tensors, needs)
        check("sddmm_grad", values, a, b.t(), tensors, needs)


@pytest.mark.parametrize("algorithm", ["unstructured", "dense"])
def test_shapes_on_a_device_that_is_not_there(algorithm: str, backend: str) -> None:
    x, weight, mask, bias = oracle.problem(6, 20, 10, 0.7, torch.bfloat16)
    pattern = sk.SparsityPattern(mask.to(backend)).tensors
    room = pattern[2].shape[0]
    operators = torch.ops.sparsekern
    with FakeTensorMode():

        def there(t: Tensor) -> Tensor:
            return torch.empty(t.shape, dtype=t.dtype, device="cuda")

        fakes = [there(t) for t in pattern]
        fake_x, fake_weight, fake_bias = there(x), there(weight), there(bias)
        out, kept = operators.masked_cuda_linear(
            fake_x, fake_weight, fake_bias, fakes, algorithm, True
        )
        gradients = operators.masked_cuda_linear_grad(
            out, fake_x, fake_weight, kept, fakes, [True] * 3, False, algorithm, algorithm
        )
    assert all(t.device.type == "cuda" for t in (out, kept, *gradients))
    assert out.shape == (6, 10)
    assert kept.dtype == torch.float32
    assert kept.shape == (room if algorithm == "unstructured" else 0,)
    assert [t.shape for t in gradients] == [(6, 20), (10, 20), (10,)]
    assert [t.dtype for t in gradients] == [torch.bfloat16] * 3


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "masked": lambda p, x, w, b: sk.masked_linear(x, w, p, b),
    "dense": lambda p, x, w, b: sk.masked_linear(x, w, p, b, weight_grad="dense"),
    "sddmm": lambda p, x, w, b: sk.sddmm(w @ x.t(), x, p) * b.sum(),
}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_a_compiled_graph_is_whole(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_choice, "algorithm", lambda *_: "unstructured")
    torch._dynamo.reset()
    compiled = torch.compile(OPERATORS[name], fullgraph=True, backend="aot_eager", dynamic=False)
    x, weight, mask, bias = oracle.problem(8, 40, 30, 0.8, torch.float32)
    pattern = sk.SparsityPattern(mask.to(backend))
    results = []
    for function in (compiled, OPERATORS[name]):
        leaves = [t.clone().to(backend).requires_grad_() for t in (x, weight, bias)]
        value = function(pattern, *leaves)
        value.sum().backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    torch._dynamo.reset()
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_graph_takes_batches_of_any_size(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sk.masked_linear, fullgraph=True, backend="aot_eager")
    _, weight, mask, bias = (t.to(backend) for t in oracle.problem(8, 40, 30, 0.8, torch.float32))
    pattern, kept = sk.SparsityPattern(mask), torch.where(mask, weight, 0)
    for batch in (3, 8, 21):
        x = torch.randn(batch, 40, device=backend, requires_grad=True)
        out = compiled(x, weight, pattern, bias)
        out.sum().backward()
        torch.testing.assert_close(out, x @ kept.T + bias, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x.grad, kept.sum(0).expand(batch, -1), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_gradients_of_gradients_are_refused(backend: str) -> None:
    x, weight, mask, _ = oracle.problem(4, 6, 5, 0.5, torch.float32)
    leaf = x.to(backend).requires_grad_()
    out = sk.masked_linear(leaf, weight.to(backend), mask.to(backend))
    (grad,) = torch.autograd.grad(out.sin().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="masked_cuda operators cannot be differentiated again"):
        grad.sum().backward()
