"""Masked convolutions against the dense one of a masked weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk

from . import oracle

# kernel, stride, padding, dilation, groups
GEOMETRIES = [
    ((3, 3), 1, 1, 1, 1),
    ((3, 3), 2, 1, 1, 1),
    ((3, 2), (1, 2), (0, 1), (2, 1), 2),
    ((3, 3), 1, "same", 1, 4),
    ((1, 1), 1, 0, 1, 1),
    ((1, 1), 1, "valid", 1, 1),
    ((1, 1), 2, 0, 1, 1),
    ((1, 1), 1, 1, 1, 1),
    ((1, 1), (1, 1), (0, 0), 1, 4),
]


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("weight_grad", ["masked", "dense"])
def test_is_the_convolution_of_the_masked_weight(
    geometry: tuple, layout: torch.memory_format, weight_grad: str
) -> None:
    kernel, stride, padding, dilation, groups = geometry
    x = torch.randn(3, 8, 9, 7).double().to(memory_format=layout)
    weight, bias = torch.randn(12, 8 // groups, *kernel).double(), torch.randn(12).double()
    mask = torch.rand(weight.shape) > 0.6

    def run(w: Tensor, function: object) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
        out = function(*leaves)  # type: ignore[operator]
        out.square().sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    options = (stride, padding, dilation, groups)
    found = run(
        oracle.poison(weight, mask),
        lambda a, w, b: sk.masked_conv2d(
            a, w, sk.SparsityPattern(mask), b, *options, weight_grad=weight_grad
        ),
    )
    kept = torch.where(mask, weight, 0)
    expected = run(kept, lambda a, w, b: F.conv2d(a, w, b, *options))
    if weight_grad == "masked":
        expected[2] = expected[2] * mask
    oracle.assert_close(found, expected, torch.float64)
    by_mask = sk.masked_conv2d(x, weight, mask, bias, *options)
    torch.testing.assert_close(by_mask, expected[0])


def test_one_image() -> None:
    x, weight = torch.randn(8, 9, 7), torch.randn(12, 8, 3, 3)
    mask = torch.rand(weight.shape) > 0.6
    torch.testing.assert_close(sk.masked_conv2d(x, weight, mask), F.conv2d(x, weight * mask))


@pytest.mark.parametrize("kernel", [1, 3])
def test_autocast_and_compile(kernel: int) -> None:
    x = torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last)
    weight = torch.randn(12, 8, kernel, kernel, requires_grad=True)
    pattern = sk.SparsityPattern(torch.rand(weight.shape) > 0.9)
    expected = F.conv2d(x, weight.detach() * pattern.mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = sk.masked_conv2d(x, weight, pattern)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 1e-2 * expected.norm()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda a, w: sk.masked_conv2d(a, w, pattern), fullgraph=True, backend="aot_eager"
    )
    found = compiled(x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert torch.equal(weight.grad != 0, pattern.mask)
    torch._dynamo.reset()


def test_errors() -> None:
    x, weight = torch.randn(2, 8, 9, 7), torch.randn(12, 8, 3, 3)
    mask = torch.ones(weight.shape, dtype=torch.bool)
    for arguments, message in (
        ((x, weight[0], mask[0]), r"weight must have shape \(out, in / groups, kh, kw\)"),
        ((x[:, :4], weight, mask), r"x must have shape \(N, 8, H, W\)"),
        ((x[0, 0], weight, mask), r"x must have shape"),
        ((x, weight, mask[:4]), r"mask has shape \(4, 8, 3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sk.masked_conv2d(*arguments)
    with pytest.raises(ValueError, match="weight_grad must be"):
        sk.masked_conv2d(x, weight, mask, weight_grad="none")
    with pytest.raises(TypeError, match=r"x is torch.float64 and weight is torch.float32"):
        sk.masked_conv2d(x.double(), weight, mask)
