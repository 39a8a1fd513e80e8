"""Masked convolutions of every channel by itself, by kept weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern.ops.masked import choice, convolution

from ..conftest import compiled_only
from . import oracle

# kernel, stride, padding, dilation: phases that the kernel meets, some or none of them; padding
# beyond the kernel and beyond the image; kernels smaller than the stride.
GEOMETRIES = [
    ((3, 3), 1, 1, 1),
    ((3, 3), 2, 1, 1),
    ((3, 3), 1, "same", 2),
    ((3, 2), (1, 2), (0, 1), (2, 1)),
    ((3, 3), (3, 2), (4, 5), 1),
    ((1, 3), (2, 3), (3, 0), 1),
    ((5, 4), (2, 1), (2, 5), (1, 2)),
    ((7, 7), 2, 3, 1),
    ((1, 1), 2, 1, 1),
    ((2, 2), 3, 0, 3),
    ((3, 3), 1, 9, 1),
]
# images, channels, filters of a channel, height, width: one and several filters, shares of channels
# and of images, rows shorter and longer than vectors.
SIZES = [(1, 3, 1, 9, 7), (3, 17, 2, 5, 16), (9, 2, 5, 6, 35), (2, 4, 1, 5, 70)]


@pytest.fixture(autouse=True)
def by_kept_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "convolves_sparsely", lambda *_: True)


def problem(
    images: int, channels: int, multiplier: int, height: int, width: int, geometry: tuple
) -> tuple[Tensor, ...]:
    """x, weight, mask, bias, and a gradient of the result, in float64."""
    kernel, *options = geometry
    x = torch.randn(images, channels, height, width, dtype=torch.float64)
    weight = torch.randn(channels * multiplier, 1, *kernel, dtype=torch.float64)
    mask = torch.rand(weight.shape) > 0.6
    bias = torch.randn(len(weight), dtype=torch.float64)
    grad = torch.randn_like(F.conv2d(x, weight, None, *options, channels))
    return x, weight, mask, bias, grad


def both(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad: Tensor, *options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients, ours and those of the masked weight in float64."""
    found = [t.detach().clone().requires_grad_() for t in (x, oracle.poison(weight, mask), bias)]
    out = sk.masked_conv2d(found[0], found[1], sk.SparsityPattern(mask), found[2], *options)
    out.backward(grad)
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    kept = torch.where(mask, leaves[1], 0)
    expected = F.conv2d(leaves[0], kept, leaves[2], *options)
    expected.backward(grad.double())
    return (
        [out.detach(), *(leaf.grad for leaf in found)],
        [expected.detach(), *(leaf.grad for leaf in leaves)],
    )


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_is_the_convolution_of_the_masked_weight(geometry: tuple) -> None:
    for sizes in SIZES:
        x, weight, mask, bias, grad = problem(*sizes, geometry)
        for x_format in (torch.contiguous_format, torch.channels_last):
            for grad_format in (torch.contiguous_format, torch.channels_last):
                images = x.to(memory_format=x_format)
                of_result = grad.to(memory_format=grad_format)
                options = (*geometry[1:], sizes[1])
                found, expected = both(images, weight, mask, bias, of_result, *options)
                oracle.assert_close(found, expected, torch.float64, long=True)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", oracle.SPARSITIES)
@pytest.mark.parametrize("stride", [1, 2])
def test_dtypes_and_sparsities(dtype: torch.dtype, sparsity: float, stride: int) -> None:
    # Wider than what is widened or narrowed at a time.
    tensors = problem(2, 6, 2, 7, 131, ((3, 3), stride, 1, 1))
    x, weight, _, bias, grad = (t.to(dtype) for t in tensors)
    mask = torch.rand(weight.shape) >= sparsity
    found, expected = both(x, weight, mask, bias, grad, stride, 1, 1, 6)
    oracle.assert_close(found, expected, dtype)


def test_views_are_read_where_they_are() -> None:
    x, weight, mask, bias, grad = problem(2, 4, 1, 6, 9, ((3, 3), 1, 1, 1))
    _, expected = both(x, weight, mask, bias, grad, 1, 1, 1, 4)
    wide = torch.full((2, 9, 8, 11), float("nan"), dtype=torch.float64)
    wide[:, ::2][:, :4, 1:-1, 1:-1] = x
    leaf = wide[:, ::2][:, :4, 1:-1, 1:-1].requires_grad_()
    out = sk.masked_conv2d(leaf, weight, mask, bias, 1, 1, 1, 4)
    out.backward(grad.mT.contiguous().mT)
    oracle.assert_close([out.detach(), leaf.grad], expected[:2], torch.float64)


@compiled_only  # in the reference zeros meet every pixel
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_stay_with_the_weights_that_meet_them(bad: float) -> None:
    # The first and the last columns are what the gaps between rows of a plane lie next to.
    for stride in (1, 2):
        x, weight, mask, bias, grad = problem(3, 5, 1, 6, 8, ((3, 3), stride, 0, 1))
        mask.fill_(True)
        mask[3] = False
        x[1, 1, 2, 7] = x[2, 2, 0, 0] = x[0, 3, 1, 1] = bad
        found, expected = both(x, weight, mask, bias, grad, stride, 0, 1, 5)
        assert torch.equal(found[2].isfinite(), expected[2].isfinite())
        assert not found[2].isfinite().all()
        kept = expected[2].isfinite()
        torch.testing.assert_close(found[2][kept], expected[2][kept])
        assert torch.equal(found[0][:, :3].isfinite(), expected[0][:, :3].isfinite())
        # A channel without kept weights is not read.
        assert torch.equal(found[0][:, 3], bias[3].expand_as(found[0][:, 3]))


@pytest.mark.parametrize("stride", [1, (2, 1)])
def test_finite_differences(stride: Any) -> None:
    x, weight, mask, bias, _ = problem(2, 3, 2, 4, 5, ((2, 3), stride, 1, 1))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    pattern = sk.SparsityPattern(mask)
    assert torch.autograd.gradcheck(
        lambda a, w, b: sk.masked_conv2d(a, w, pattern, b, stride, 1, 1, 3), leaves
    )


def test_only_some_gradients_and_the_same_bits_by_any_thread() -> None:
    x, weight, mask, bias, grad = problem(9, 5, 1, 6, 7, ((3, 3), 1, 1, 1))
    full, expected = both(x, weight, mask, bias, grad, 1, 1, 1, 5)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found, _ = both(x, weight, mask, bias, grad, 1, 1, 1, 5)
            again, _ = both(x, weight, mask, bias, grad, 1, 1, 1, 5)
            oracle.assert_close(found, expected, torch.float64)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    finally:
        torch.set_num_threads(before)
    for live in ((0,), (1,), (2,), (0, 2), (1, 2)):
        leaves = [t.clone().requires_grad_(i in live) for i, t in enumerate((x, weight, bias))]
        sk.masked_conv2d(leaves[0], leaves[1], mask, leaves[2], 1, 1, 1, 5).backward(grad)
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is None) == (i not in live)
            if i in live:
                torch.testing.assert_close(leaf.grad, full[i + 1])


def test_no_images_and_no_kept_weights() -> None:
    weight = torch.randn(6, 1, 3, 3, requires_grad=True)
    x = torch.randn(0, 3, 8, 8, requires_grad=True)
    out = sk.masked_conv2d(x, weight, torch.ones(weight.shape, dtype=torch.bool), groups=3)
    assert out.shape == (0, 6, 6, 6)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert not weight.grad.any()
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    bias = torch.randn(6)
    out = sk.masked_conv2d(x, weight, torch.zeros(weight.shape, dtype=torch.bool), bias, groups=3)
    assert torch.equal(out, bias.view(1, -1, 1, 1).expand(2, 6, 6, 6))
    out.sum().backward()
    assert not x.grad.any()


def test_autocast_and_compile() -> None:
    x, weight = torch.randn(2, 8, 9, 7), torch.randn(8, 1, 3, 3, requires_grad=True)
    pattern = sk.SparsityPattern(torch.rand(weight.shape) > 0.7)
    expected = F.conv2d(x, weight.detach() * pattern.mask, groups=8)
    with torch.autocast("cpu", torch.bfloat16):
        out = sk.masked_conv2d(x, weight, pattern, groups=8)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 1e-2 * expected.norm()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda a, w: sk.masked_conv2d(a, w, pattern, groups=8), fullgraph=True, backend="aot_eager"
    )
    found = compiled(x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert not weight.grad[~pattern.mask].any()
    assert weight.grad[pattern.mask].all()
    torch._dynamo.reset()


@compiled_only
def test_adjacent_channels_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, weight = torch.randn(4, 64, 28, 28), torch.randn(64, 1, 3, 3)
    pattern = sk.SparsityPattern(torch.rand(weight.shape) > 0.95)
    assert convolution.algorithms(x, weight, pattern, groups=64) == ("sparse",) * 3
    last = x.to(memory_format=torch.channels_last)
    assert convolution.algorithms(last, weight, pattern, groups=64) == ("dense",) * 3
