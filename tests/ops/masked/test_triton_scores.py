"""OptG's step on one weight, by Triton and by plain PyTorch, against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import sparsekern as sk
from sparsekern import dispatch
from sparsekern.ops.masked import scores

from .. import interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["triton", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    runs = request.param == "triton"
    monkeypatch.setattr(dispatch, "runs_triton_kernels", lambda _: runs)
    with sk.backend(request.param), interpreter.patched_once():
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1,), (33, 70), (8, 5, 3, 3)], ids=str)
@pytest.mark.parametrize("sparsity", [None, 0.7, 1.0])
def test_against_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, sparsity: float | None
) -> None:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    whole, grad = (
        torch.randn(shape).to(DEVICE, dtype).contiguous(memory_format=layout) for _ in range(2)
    )
    removed = None if sparsity is None else torch.rand_like(whole) < sparsity
    weight = whole if removed is None else whole.masked_fill(removed, 0)
    hidden = whole.clone()
    if removed is not None:
        hidden[~removed] = torch.nan  # read where it is removed only
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    velocity, score = (torch.randn_like(whole, dtype=wide) for _ in range(2))
    expected = 0.9 * velocity.double() + whole.double() * grad.double()
    moved = score.double() - 0.25 * expected
    kept = grad if removed is None else grad.masked_fill(removed, 0)
    weight, left = weight.clone(), grad.clone()
    rest = (0.9, 0.25) if sparsity != 0.7 else (0.9, 0.25, torch.tensor(1.0, device=DEVICE))
    scores.step_(weight, left, hidden, removed, velocity, score, *rest)
    assert torch.equal(weight, whole)
    assert torch.equal(left, kept)
    bound = 8 * torch.finfo(wide).eps * (1 + expected.abs().max())
    assert (velocity - expected).abs().max() <= bound
    assert (score - moved).abs().max() <= 2 * bound


def test_a_gradient_in_another_order_goes_by_torch(backend: str) -> None:
    weight, grad = torch.randn(4, 6, device=DEVICE), torch.randn(6, 4, device=DEVICE).t()
    velocity, score = torch.zeros_like(weight), torch.zeros_like(weight)
    scores.step_(weight, grad, weight.clone(), None, velocity, score, 0.5, 1.0)
    torch.testing.assert_close(score, -weight * grad)
