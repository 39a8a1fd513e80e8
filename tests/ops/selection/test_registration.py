"""The selection operators under torch.library, torch.compile and torch.func."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk

from ..conftest import compiled_only
from . import oracle

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_opcheck() -> None:
    for tensors in (oracle.network(200, torch.float32), [torch.randn(3, 4).t()]):
        threshold = torch.ops.sparsekern.selection_threshold.default
        torch.library.opcheck(threshold, (tensors, 0.5, "x[{}]"), test_utils=UTILITIES)
        masks = torch.ops.sparsekern.selection_masks.default
        torch.library.opcheck(masks, (tensors, 0.5, True, "x[{}]"), test_utils=UTILITIES)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_compile_without_graph_breaks(dynamic: bool) -> None:
    def pruned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masks = sk.global_masks([a * 2, b], 0.4)
        threshold = sk.magnitude_threshold([a, b], 0.4)
        return a * masks[0], b * masks[1], threshold + 1

    compiled = torch.compile(pruned, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (5, 9):
        a, b = torch.randn(rows, 3, requires_grad=True), torch.randn(rows * 4)
        expected = pruned(a, b)
        found = compiled(a, b)
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(x, y)
        (gradient,) = torch.autograd.grad(found[0].sum(), a)
        assert torch.equal(gradient, (expected[0] != 0).float())


@compiled_only  # plain PyTorch cannot look at values while it is compiled
@pytest.mark.usefixtures("fresh_compiler")
def test_nan_under_compile() -> None:
    compiled = torch.compile(lambda x: sk.magnitude_threshold([x], 0.5), backend="aot_eager")
    with pytest.raises(ValueError, match=r"tensors\[0\] of shape \(2,\) holds NaN"):
        compiled(torch.tensor([1.0, torch.nan]))


def test_vmap_takes_plain_pytorch() -> None:
    x = torch.randn(4, 30)
    found = torch.vmap(lambda row: sk.magnitude_threshold([row], 0.5))(x)
    assert torch.equal(found, x.abs().sort(dim=1).values[:, 15])
