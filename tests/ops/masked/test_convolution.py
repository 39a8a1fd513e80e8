"""Masked convolutions against the dense one of a masked weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from sparsekern import native
from sparsekern.ops.masked import choice, convolution

from ..conftest import compiled_only
from . import oracle

# kernel, stride, padding, dilation, groups: phases of strides that divide the kernel or not, halos
# on all sides, on some and on none, padding beyond the kernel, kernels smaller than the stride.
GEOMETRIES = [
    ((3, 3), 1, 1, 1, 1),
    ((3, 3), 2, 1, 1, 1),
    ((3, 2), (1, 2), (0, 1), (2, 1), 2),
    ((3, 3), 1, "same", 1, 4),
    ((2, 4), 1, "same", (1, 2), 1),
    ((3, 3), (3,), (4,), (1,), 2),
    ((1, 3), (2, 3), (3, 0), 1, 1),
    ((5, 4), (2, 1), (2, 5), (1, 2), 1),
    ((7, 7), 2, 3, 1, 1),
    ((1, 1), 1, 0, 1, 1),
    ((1, 1), 1, "valid", 1, 1),
    ((1, 1), 2, 0, 1, 1),
    ((1, 1), 1, 1, 1, 1),
    ((1, 1), (1, 1), (0, 0), 1, 4),
    ((3, 3), 1, 1, 1, 8),
]
# On and off the lanes of a vector (4, 8, 16; half of them for float64); one image goes by strips.
IMAGES = (1, 3, 17)


def reference(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad: Tensor, dense: bool, *options: Any
) -> list[Tensor]:
    """Result and gradients in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    kept = torch.where(mask, leaves[1], 0)
    kept.retain_grad()
    out = F.conv2d(leaves[0], kept, leaves[2], *options)
    out.backward(grad.double())
    product = kept.grad if dense else torch.where(mask, kept.grad, 0)
    return [out.detach(), leaves[0].grad, product, leaves[2].grad]


def run(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    grad: Tensor,
    *options: Any,
    weight_grad: str = "masked",
) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    pattern = sk.SparsityPattern(mask)
    a, w, b = leaves
    out = sk.masked_conv2d(a, w, pattern, b, *options, weight_grad=weight_grad)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def problem(
    images: int, geometry: tuple, sparsity: float, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, ...]:
    """x, weight, mask, bias, and a gradient of the result."""
    kernel, *options = geometry
    x = torch.randn(images, 8, 9, 18).to(dtype).to(memory_format=layout)
    weight = torch.randn(16, 8 // options[3], *kernel) / 5
    mask = torch.rand(weight.shape) >= sparsity
    out = F.conv2d(x.float(), weight, None, *options)
    grad = torch.randn(out.shape).to(dtype).to(memory_format=layout)
    return x, weight.to(dtype), mask, torch.randn(16).to(dtype), grad


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("images", IMAGES)
def test_is_the_convolution_of_the_masked_weight(
    geometry: tuple, layout: torch.memory_format, images: int
) -> None:
    x, weight, mask, bias, grad = problem(images, geometry, 0.7, torch.float64, layout)
    poisoned, options = oracle.poison(weight, mask), geometry[1:]
    for weight_grad in ("masked", "dense"):
        expected = reference(x, weight, mask, bias, grad, weight_grad == "dense", *options)
        found = run(x, poisoned, mask, bias, grad, *options, weight_grad=weight_grad)
        oracle.assert_close(found, expected, torch.float64, long=True)
    by_mask = sk.masked_conv2d(x, weight, mask, bias, *options)
    torch.testing.assert_close(by_mask, expected[0])


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("sparsity", oracle.SPARSITIES)
def test_dtypes_and_sparsities(
    dtype: torch.dtype, layout: torch.memory_format, sparsity: float
) -> None:
    geometry = ((3, 3), 2, 1, 1, 2)
    x, weight, mask, bias, grad = problem(5, geometry, sparsity, dtype, layout)
    found = run(x, oracle.poison(weight, mask), mask, bias, grad, *geometry[1:])
    expected = reference(x, weight, mask, bias, grad, False, *geometry[1:])
    oracle.assert_close(found, expected, dtype)


@pytest.mark.parametrize("width", [1, 3, 7, 16, 33, 70])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_widths_and_heights(
    width: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every shape of a block of pixels: rows together where they are short, chunks where long.
    monkeypatch.setattr(choice, "convolves_sparsely", lambda *_: True)
    for height in (1, 2, 5, 8):
        for stride in (1, 2):
            x = torch.randn(4, 3, height, width).to(memory_format=layout)
            weight, bias = torch.randn(18, 3, 3, 3), torch.randn(18)
            mask = torch.rand(weight.shape) > 0.8
            grad = torch.randn_like(F.conv2d(x, weight, None, stride, 1))
            expected = reference(x, weight, mask, bias, grad, False, stride, 1)
            found = run(x, weight, mask, bias, grad, stride, 1)
            oracle.assert_close(found, expected, torch.float32)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_have_the_memory_format_of_torch(layout: torch.memory_format) -> None:
    geometry = ((3, 3), 1, 1, 1, 1)
    x, weight, mask, bias, grad = problem(3, geometry, 0.9, torch.float32, layout)
    leaf = x.clone().requires_grad_()
    out = sk.masked_conv2d(leaf, weight, sk.SparsityPattern(mask), bias, padding=1)
    assert out.stride() == F.conv2d(x, weight, bias, padding=1).stride()
    out.backward(grad)
    assert leaf.grad.stride() == x.stride()
    # A weight in the other format is read as well.
    last = weight.to(memory_format=torch.channels_last)
    again = sk.masked_conv2d(x, last, sk.SparsityPattern(mask), bias, padding=1)
    torch.testing.assert_close(again, out.detach())


@pytest.mark.usefixtures("algorithm")
def test_layouts_that_are_neither() -> None:
    geometry = ((3, 3), 1, 1, 1, 1)
    x, weight, mask, bias, grad = problem(3, geometry, 0.8, torch.float32, torch.channels_last)
    expected = reference(x, weight, mask, bias, grad, False, 1, 1)

    def spaced(t: Tensor) -> Tensor:
        wide = torch.full([2 * size for size in t.shape], float("nan"))
        wide[::2, ::2, ::2, ::2] = t
        return wide[::2, ::2, ::2, ::2]

    def padded(t: Tensor) -> Tensor:
        wide = torch.full([size + 2 for size in t.shape], float("nan"))
        wide[1:-1, 1:-1, 1:-1, 1:-1] = t
        return wide[1:-1, 1:-1, 1:-1, 1:-1]

    def padded_last(t: Tensor) -> Tensor:
        return padded(t.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)

    for lay in (spaced, padded, padded_last, lambda t: t.transpose(2, 3).contiguous().mT):
        leaf = x.clone().requires_grad_()
        out = sk.masked_conv2d(lay(leaf), weight, sk.SparsityPattern(mask), bias, 1, 1)
        out.backward(lay(grad))
        oracle.assert_close([out.detach(), leaf.grad], expected[:2], torch.float32)
    # A gradient without memory of its own, and images that are one.
    leaf = x[:1].clone().requires_grad_()
    sk.masked_conv2d(leaf.expand(3, -1, -1, -1), weight, mask, bias, 1, 1).sum().backward()
    repeated = x[:1].expand(3, -1, -1, -1)
    ones = reference(repeated, weight, mask, bias, torch.ones_like(grad), False, 1, 1)
    oracle.assert_close([leaf.grad], [ones[1].sum(0, keepdim=True)], torch.float32)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("images", [1, 2])
def test_finite_differences(images: int) -> None:
    x, weight, bias = torch.randn(images, 4, 5, 6), torch.randn(6, 2, 2, 3), torch.randn(6)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    pattern = sk.SparsityPattern(torch.rand(weight.shape) > 0.5)
    assert torch.autograd.gradcheck(
        lambda a, w, b: sk.masked_conv2d(a, w, pattern, b, (1, 2), 1, 1, 2), leaves
    )


@compiled_only  # in the reference zeros meet every pixel
@pytest.mark.parametrize("images", IMAGES)
def test_non_finite_pixels_reach_what_kept_weights_reach(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "convolves_sparsely", lambda *_: True)
    geometry = ((3, 3), 1, 1, 1, 1)
    x, weight, mask, bias, _ = problem(
        images, geometry, 0.8, torch.float32, torch.contiguous_format
    )
    bad = torch.zeros_like(x)
    bad[0, 2, 8, 3] = bad[0, 5, 0, 17] = bad[-1, 0, 4, 0] = 1
    reached = F.conv2d(bad, mask.float(), padding=1) > 0
    out = sk.masked_conv2d(x / (1 - bad), weight, sk.SparsityPattern(mask), bias, padding=1)
    assert torch.equal(out.isfinite(), ~reached)


@pytest.mark.usefixtures("algorithm")
def test_only_some_gradients_and_the_same_bits() -> None:
    geometry = ((3, 3), 2, 1, 1, 1)
    x, weight, mask, bias, grad = problem(20, geometry, 0.8, torch.float32, torch.channels_last)
    full = run(x, weight, mask, bias, grad, 2, 1)
    for live in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        leaves = [t.clone().requires_grad_(i in live) for i, t in enumerate((x, weight, bias))]
        sk.masked_conv2d(leaves[0], leaves[1], mask, leaves[2], 2, 1).backward(grad)
        for i, leaf in enumerate(leaves):
            if i in live:
                torch.testing.assert_close(leaf.grad, full[i + 1])
            else:
                assert leaf.grad is None
    for again, once in zip(run(x, weight, mask, bias, grad, 2, 1), full, strict=True):
        assert torch.equal(again, once)


@pytest.mark.usefixtures("algorithm")
def test_one_thread_and_two_agree() -> None:
    geometry = ((3, 3), 1, 1, 1, 1)
    x, weight, mask, bias, grad = problem(33, geometry, 0.6, torch.float64, torch.channels_last)
    expected = reference(x, weight, mask, bias, grad, False, 1, 1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = run(x, weight, mask, bias, grad, 1, 1)
            oracle.assert_close(found, expected, torch.float64, long=True)
    finally:
        torch.set_num_threads(before)


def check_no_images() -> None:
    weight, bias = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4)
    x = torch.randn(0, 3, 8, 8, requires_grad=True)
    out = sk.masked_conv2d(x, weight, torch.ones(weight.shape, dtype=torch.bool), bias)
    assert out.shape == (0, 4, 6, 6)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert not weight.grad.any()


@pytest.mark.usefixtures("algorithm")
def test_no_images() -> None:
    check_no_images()


@pytest.mark.parametrize("kept", [False, True])
def test_few_images_and_a_mask_of_one_value_by_what_is_chosen(kept: bool) -> None:
    check_no_images()
    for images in (0, 1, 2):
        geometry = ((3, 3), 1, 1, 1, 1)
        x, weight, mask, bias, grad = problem(
            images, geometry, 0.5, torch.float32, torch.contiguous_format
        )
        mask.fill_(kept)
        expected = reference(x, weight, mask, bias, grad, False, 1, 1)
        oracle.assert_close(run(x, weight, mask, bias, grad, 1, 1), expected, torch.float32)


@pytest.mark.usefixtures("algorithm")
def test_one_image() -> None:
    x, weight = torch.randn(8, 9, 7), torch.randn(12, 8, 3, 3)
    mask = torch.rand(weight.shape) > 0.6
    torch.testing.assert_close(sk.masked_conv2d(x, weight, mask), F.conv2d(x, weight * mask))


def test_algorithms_are_those_that_are_taken(
    algorithm: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    for name in ("masked_conv", "masked_conv_gradients"):
        if backend == "cpu":
            call = getattr(native.cpu(), name)
            monkeypatch.setattr(native.cpu(), name, lambda *a, c=call: (taken.append("x"), c(*a)))
    x, weight = torch.randn(2, 8, 9, 7, requires_grad=True), torch.randn(12, 8, 3, 3)
    pattern = sk.SparsityPattern(torch.rand(weight.shape) > 0.9)
    expected = ("reference" if backend == "reference" else algorithm,) * 3
    assert convolution.algorithms(x, weight, pattern, padding="same") == expected
    sk.masked_conv2d(x, weight, pattern, padding="same").sum().backward()
    assert bool(taken) == (expected[0] == "sparse")


@pytest.mark.usefixtures("algorithm")
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
    for wrong in (mask.float(), mask.byte(), [1]):
        with pytest.raises(TypeError, match="mask must be a bool tensor or a SparsityPattern"):
            sk.masked_conv2d(x, weight, wrong)
    for arguments, message in (
        ((x, weight, mask.to("meta")), "mask is on meta and weight on cpu"),
        ((x.to("meta"), weight, mask), "x is on meta and weight on cpu"),
        ((x, weight, mask, torch.ones(5)), r"bias must have shape \(12,\)"),
        ((x, weight[0], mask[0]), r"weight must have shape \(out, in / groups, kh, kw\)"),
        ((x[:, :4], weight, mask), r"x must have shape \(N, 8, H, W\)"),
        ((x[0, 0], weight, mask), r"x must have shape"),
        ((x, weight, mask[:4]), r"mask has shape \(4, 8, 3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sk.masked_conv2d(*arguments)
    with pytest.raises(ValueError, match="weight_grad must be"):
        sk.masked_conv2d(x, weight, mask, weight_grad="none")
    for options in ({"stride": 0}, {"padding": -1}, {"dilation": 9}, {"padding": "full"}):
        with pytest.raises(RuntimeError):
            sk.masked_conv2d(x, weight, mask, **options)
    with pytest.raises(TypeError, match=r"x is torch.float64 and weight is torch.float32"):
        sk.masked_conv2d(x.double(), weight, mask)
