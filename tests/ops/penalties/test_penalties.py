"""HyperSparse and layer sparsity: values, gradients, the proximal step, torch.compile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

import sparsekern as sk

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LOSSES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "hypersparse": lambda ws: sk.hypersparse_loss(ws, 0.7),
    "layers": lambda ws: sk.layer_sparsity_loss(ws, [0.5, 2.0, 1.0][: len(ws)]),
}
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


def layers(dtype: torch.dtype = torch.float64, size: int = 60) -> list[Tensor]:
    weights = [torch.randn(size, 7) * 0.1, torch.randn(3, size, 3, 3), torch.randn(11) * 2]
    return [w.to(dtype) for w in weights]


def leaves(weights: list[Tensor]) -> list[Tensor]:
    return [w.detach().clone(memory_format=torch.preserve_format).requires_grad_() for w in weights]


def gradients(loss: Callable[[list[Tensor]], Tensor], weights: list[Tensor]) -> list[Tensor]:
    inputs = leaves(weights)
    return list(torch.autograd.grad(loss(inputs), inputs))


def hypersparse_gradient(weights: list[Tensor], sparsity: float) -> list[Tensor]:
    """``sign(w) s sech²(s|w|) Σ|w| / Σ tanh(s|w|)`` in float64."""
    flat = torch.cat([w.double().flatten() for w in weights])
    size = flat.abs()
    threshold = size.sort().values[min(math.floor(sparsity * len(flat)), len(flat) - 1)]
    s = math.atanh(1 / math.sqrt(3)) / threshold
    factor = s * size.sum() / torch.tanh(s * size).sum()
    gradient = flat.sign() * factor / torch.cosh(s * size) ** 2
    parts = gradient.split([w.numel() for w in weights])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def layer_gradient(weights: list[Tensor], strengths: list[float]) -> list[Tensor]:
    negatives = [w.double().clamp(max=0) for w in weights]
    return [s * n / n.norm() if n.any() else n for n, s in zip(negatives, strengths, strict=True)]


def check(
    found: list[Tensor], expected: list[Tensor], dtype: torch.dtype, units: float = 4
) -> None:
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == dtype
        unit = torch.finfo(dtype).eps
        error = torch.linalg.vector_norm(f.double() - e)
        assert error <= units * unit * torch.linalg.vector_norm(e) + 1e-300


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 5, 2000])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.998, 1.0])
def test_hypersparse_gradient(dtype: torch.dtype, size: int, sparsity: float) -> None:
    weights = layers(dtype, size)
    inputs = leaves(weights)
    loss = sk.hypersparse_loss(inputs, sparsity)
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == 0
    found = torch.autograd.grad(3 * loss, inputs)
    expected = [3 * g for g in hypersparse_gradient(weights, sparsity)]
    # At sparsity 0 the smallest weight sets the scale, and of the others all but rounding is 0:
    # the error is one of all weights together.
    check([flattened(found)], [flattened(expected)], dtype, 4 if sparsity else 64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 5, 2000])
def test_layer_sparsity(dtype: torch.dtype, size: int) -> None:
    weights, strengths = layers(dtype, size), [0.5, 2.0, 0.0]
    loss = sk.layer_sparsity_loss(weights, strengths)
    expected = sum(
        s * w.double().clamp(max=0).norm() for s, w in zip(strengths, weights, strict=True)
    )
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    found = gradients(lambda ws: 3 * sk.layer_sparsity_loss(ws, strengths), weights)
    # torch's own float64 norm is a dozen units off.
    check(found, [3 * g for g in layer_gradient(weights, strengths)], dtype, 64)


def test_layer_sparsity_gradcheck() -> None:
    inputs = leaves(layers(size=2))
    assert torch.autograd.gradcheck(
        lambda *ws: sk.layer_sparsity_loss(list(ws), 0.7), inputs, fast_mode=True
    )


def test_hypersparse_is_the_gradient_with_threshold_and_sum_held_constant() -> None:
    # The loss itself is always 0; differentiated numerically with its constants in place.
    weights = layers(size=3)
    flat = torch.cat([w.flatten() for w in weights])
    s = math.atanh(1 / math.sqrt(3)) / sk.magnitude_threshold(weights, 0.7)
    constant = torch.tanh(s * flat.abs()).sum()

    def value(w: Tensor) -> Tensor:
        return w.abs().sum() * torch.tanh(s * w.abs()).sum() / constant - w.abs().sum()

    found = torch.cat([g.flatten() for g in gradients(LOSSES["hypersparse"], weights)])
    step = 1e-6 * torch.eye(len(flat), dtype=torch.float64)
    numeric = torch.stack([(value(flat + h) - value(flat - h)) / 2e-6 for h in step])
    torch.testing.assert_close(found, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_are_not_pushed(dtype: torch.dtype) -> None:
    weights = layers(dtype)
    weights[0][::2] = 0
    weights[1][0] = -0.0
    for w, g in zip(weights, gradients(LOSSES["hypersparse"], weights), strict=True):
        assert not g[w == 0].any()
        assert g[w != 0].any()
    # Once the share aimed at is zero, nothing is pushed.
    for sparsity in (0.0, 0.4):
        mostly = [torch.zeros(100, dtype=dtype), weights[2]]
        found = gradients(lambda ws, k=sparsity: sk.hypersparse_loss(ws, k), mostly)
        assert not any(g.any() for g in found)


def test_extreme_weights() -> None:
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        weights = [w * scale for w in layers()]
        assert all(torch.isfinite(g).all() for g in gradients(LOSSES["hypersparse"], weights))
        loss = sk.layer_sparsity_loss(weights)
        torch.testing.assert_close(
            loss / scale,
            sk.layer_sparsity_loss(layers()) * 0
            + sum(w.clamp(max=0).div(scale).norm() for w in weights),
        )
        check(
            gradients(sk.layer_sparsity_loss, weights),
            layer_gradient([w / scale for w in weights], [1.0] * 3),
            torch.float64,
        )
    denormal = [torch.full((9,), 1e-42), -torch.full((9,), 1e-42)]
    assert all(torch.isfinite(g).all() for g in gradients(LOSSES["hypersparse"], denormal))


@pytest.mark.parametrize("name", LOSSES)
def test_layouts(name: str) -> None:
    image = torch.randn(8, 6, 5, 4, dtype=torch.float64)
    for weights in (
        [image.contiguous(memory_format=torch.channels_last), image[:, 1:, ::2]],
        [image[0, 0].t(), image[:1].expand(3, 6, 5, 4), torch.empty(0, 3, dtype=torch.float64)],
    ):
        inputs = [w.requires_grad_() for w in (v.detach() for v in weights)]
        found = torch.autograd.grad(LOSSES[name](inputs), inputs)
        expected = gradients(LOSSES[name], [w.contiguous() for w in weights])
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_only_some_weights_require_grad(name: str) -> None:
    weights = layers()
    full = gradients(LOSSES[name], weights)
    mixed = [w.clone().requires_grad_(i == 1) for i, w in enumerate(weights)]
    LOSSES[name](mixed).backward()
    assert mixed[0].grad is None
    torch.testing.assert_close(mixed[1].grad, full[1])
    assert not LOSSES[name](weights).requires_grad
    (single,) = gradients(lambda ws: LOSSES[name]([ws[0]]), weights[:1])
    assert single.any()


@pytest.mark.parametrize("name", LOSSES)
def test_large_gradients_accumulate_and_do_not_overlap(name: str) -> None:
    weights = leaves([torch.randn(700, 1000), torch.randn(1001), torch.randn(900, 800)])
    expected = gradients(LOSSES[name], [w.double() for w in weights])
    for _ in range(2):
        LOSSES[name](weights).backward()
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.grad, (2 * e).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_differentiating_twice_is_right_or_refused(name: str, backend: str) -> None:
    inputs = leaves(layers(size=2))
    first = torch.autograd.grad(LOSSES[name](inputs), inputs, create_graph=True)
    total = sum(g.square().sum() for g in first)
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="penalty operators cannot be differentiated again"):
            total.backward()
        return
    total.backward()
    if name == "layers":
        assert torch.autograd.gradgradcheck(
            lambda *ws: LOSSES[name](list(ws)), leaves(layers(size=2)), fast_mode=True
        )


@pytest.mark.parametrize("name", LOSSES)
def test_threads_and_autocast_change_nothing(name: str) -> None:
    weights = layers(torch.float32, 9000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(LOSSES[name], weights))
    finally:
        torch.set_num_threads(before)
    with torch.autocast("cpu", torch.bfloat16):
        results.append(gradients(LOSSES[name], weights))
    for result in results:
        check(result, [g.double() for g in results[0]], torch.float32)
        if sk.dispatch.requested() == "cpu":
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", [0.0, 0.3, 1e9])
def test_proximal_step(dtype: torch.dtype, step: float) -> None:
    weights = [*layers(dtype), torch.ones(4, dtype=dtype), torch.empty(0, dtype=dtype)]
    weights[1] = weights[1].contiguous(memory_format=torch.channels_last)
    before = [w.double().clone() for w in weights]
    parameters = [torch.nn.Parameter(w) for w in weights]
    versions = [p._version for p in parameters]
    assert sk.layer_sparsity_prox_(parameters, step) is None
    for p, old, version in zip(parameters, before, versions, strict=True):
        norm = old.clamp(max=0).norm()
        kept = max(0.0, 1 - step / norm.item()) if norm > 0 else 1.0
        expected = torch.where(old < 0, kept * old, old)
        torch.testing.assert_close(p.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
        assert p._version > version or p.numel() == 0
        if step == 1e9:
            assert not (p < 0).any()


def test_proximal_step_minimises_its_objective() -> None:
    w = torch.randn(40, dtype=torch.float64)
    found = w.clone()
    sk.layer_sparsity_prox_(found, 0.8)

    def objective(v: Tensor) -> Tensor:
        return (v - w).square().sum() / 2 + 0.8 * v.clamp(max=0).norm()

    for _ in range(50):
        assert objective(found) <= objective(found + 1e-3 * torch.randn_like(w))


def test_proximal_step_of_a_view() -> None:
    base = torch.randn(6, 8, dtype=torch.float64)
    expected = base[:, ::2].contiguous()
    rest = base[:, 1::2].clone()
    sk.layer_sparsity_prox_([base[:, ::2]], 0.5)
    sk.layer_sparsity_prox_([expected], 0.5)
    torch.testing.assert_close(base[:, ::2], expected)
    assert torch.equal(base[:, 1::2], rest)


def test_errors() -> None:
    w = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"sparsity must be a number from 0 to 1, got 1.5"):
        sk.hypersparse_loss([w], 1.5)
    for call in (
        lambda ws: sk.hypersparse_loss(ws, 0.5),
        sk.layer_sparsity_loss,
        sk.layer_sparsity_prox_,
    ):
        with pytest.raises(ValueError, match="weights is empty"):
            call([])
        with pytest.raises(TypeError, match=r"weights\[1\] must be a tensor, got float"):
            call([w, 1.0])
        with pytest.raises(TypeError, match=r"weights\[1\] is torch.float64"):
            call([w, w.double()])
        for wrong in (torch.nan, torch.inf, -torch.inf):
            bad = w.clone()
            bad[2, 1] = wrong
            if call in (sk.layer_sparsity_loss, sk.layer_sparsity_prox_) and wrong == torch.inf:
                continue  # what is positive plays no part
            kept = w.clone()
            with pytest.raises(ValueError, match=r"weights\[1\] of shape \(4, 3\) holds"):
                call([kept, bad])
            assert torch.equal(kept, w)
    for wrong in (-1.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match=f"strengths must be finite.*{wrong}"):
            sk.layer_sparsity_loss([w], wrong)
    with pytest.raises(ValueError, match="strengths has 1 entries and weights has 2"):
        sk.layer_sparsity_loss([w, w], [1.0])
    with pytest.raises(TypeError, match="strengths must be a number or a list"):
        sk.layer_sparsity_loss([w], None)


def test_opcheck() -> None:
    ws, ops = layers(torch.float32, 3), torch.ops.sparsekern
    calls = [
        (ops.penalties_hypersparse, (ws, 0.5, "w[{}]")),
        (ops.penalties_layers, (ws, [1.0] * 3, "w[{}]")),
        (ops.penalties_layers_prox_, (ws, [1.0] * 3, "w[{}]")),
    ]
    grad = torch.ones(())
    state = ops.penalties_hypersparse(ws, 0.5, "w")[1]
    calls.append((ops.penalties_hypersparse_grad, (grad, ws, state, [True, False, True])))
    old = [torch.ones_like(w) for w in ws]
    calls.append((ops.penalties_hypersparse_add_, (old, ws, state, 0.5)))
    norms = ops.penalties_layers(ws, [1.0] * 3, "w")[1]
    calls.append((ops.penalties_layers_grad, (grad, ws, norms, [1.0] * 3, [True] * 3)))
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments, test_utils=UTILITIES)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_without_graph_breaks() -> None:
    def total(a: Tensor, b: Tensor) -> Tensor:
        return sk.hypersparse_loss([a * 2, b], 0.5) + sk.layer_sparsity_loss([a, b.square() - 1])

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    results = []
    for function in (total, compiled):
        inputs = leaves(layers(torch.float32, 4)[:2]) if not results else leaves(results[0][1:3])
        value = function(*inputs)
        value.backward()
        results.append([value.detach(), *inputs, *(w.grad for w in inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def shrink(w: Tensor) -> Tensor:
        sk.layer_sparsity_prox_([w], 0.5)
        return w * 2

    w = torch.randn(8, 4)
    expected = shrink(w.clone())
    compiled = torch.compile(shrink, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w.clone()), expected)
