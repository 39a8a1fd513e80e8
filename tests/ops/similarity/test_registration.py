"""The compiled operators as torch.library sees them, and the sizes that Python and C++ share."""

from __future__ import annotations

import pytest
import torch

from sparsekern import native
from sparsekern.ops.similarity import calls, layout

LINEAR_U = (0, 0.0, 0.0, 2, True)
RBF_DOUBLE = (1, 0.5, 0.0, 1, True)
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


def _features(n: int, *dims: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator) for d in dims]


@pytest.mark.parametrize("spec", [LINEAR_U, RBF_DOUBLE])
# Small samples, one tile, several tiles, and (linear) the feature-space form.
@pytest.mark.parametrize("n", [6, 20, 70, 400])
def test_compare_passes_opcheck(n: int, spec: tuple[int, float, float, int, bool]) -> None:
    xs = _features(n, 5, 9)
    op = torch.ops.sparsekern.similarity_compare.default
    torch.library.opcheck(op, (xs, 0, 1, *spec, True), test_utils=UTILITIES)
    out, state = op(xs, 0, 1, *spec, True)
    backward = torch.ops.sparsekern.similarity_compare_grad.default
    torch.library.opcheck(
        backward,
        (torch.ones_like(out), xs, state, [True, False], 0, 1, *spec),
        test_utils=UTILITIES,
    )


def test_sum_and_gram_pass_opcheck() -> None:
    xs = _features(12, 5, 9, 4)
    op = torch.ops.sparsekern.similarity_sum.default
    torch.library.opcheck(op, (xs, [2, 1], False, *LINEAR_U, True), test_utils=UTILITIES)
    out, state = op(xs, [2, 1], False, *LINEAR_U, True)
    backward = torch.ops.sparsekern.similarity_sum_grad.default
    torch.library.opcheck(
        backward,
        (torch.ones_like(out), xs, state, [True] * 3, [2, 1], False, *LINEAR_U),
        test_utils=UTILITIES,
    )
    gram = torch.ops.sparsekern.similarity_gram.default
    torch.library.opcheck(gram, (xs[0], *RBF_DOUBLE), test_utils=UTILITIES)
    out, state = gram(xs[0], *RBF_DOUBLE)
    torch.library.opcheck(
        torch.ops.sparsekern.similarity_gram_grad.default,
        (torch.ones_like(out), xs[0], state, *RBF_DOUBLE),
        test_utils=UTILITIES,
    )


@pytest.mark.parametrize("n", [2, 16, 17, 32, 33, 1000])
@pytest.mark.parametrize("dims", [[1], [7, 0, 300], [64] * 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_has_the_size_that_the_core_expects(
    n: int, dims: list[int], dtype: torch.dtype
) -> None:
    expected = native.cpu().state_bytes(n, dims, dtype == torch.float64)
    assert layout.state_bytes(n, dims, dtype, False) == expected


def test_feature_space_is_chosen_for_many_samples_of_few_features() -> None:
    def chosen(n: int, dims: list[int], **changes: object) -> bool:
        arguments = {"first": 1, "kernel": 0, "dtype": torch.float32, "keep": False, **changes}
        return layout.feature_space_is_faster(n, dims, **arguments)  # type: ignore[arg-type]

    assert chosen(10_000, [512, 512])
    assert not chosen(256, [8192, 8192])
    assert not chosen(10_000, [512, 512], kernel=1)
    assert not chosen(10_000, [512, 512], dtype=torch.bfloat16)
    # Once chosen, more samples never change it back.
    for keep in (False, True):
        choices = [chosen(n, [64, 96], keep=keep) for n in range(17, 2000, 13)]
        assert choices == sorted(choices)
        assert choices[-1]


def test_outliers_fall_back_to_gram_matrices() -> None:
    # One sample a million times larger: in feature space its square would drown the others.
    x, y = (t.double() for t in _features(500, 6, 8))
    x[0] *= 1e3
    x, y = x.float(), y.float()
    out, state = calls.compare([x, y], 1, 1, *LINEAR_U, True)
    assert layout.feature_space_is_faster(500, [6, 8], 1, 0, x.dtype, True)
    assert state[-1] == 0
    exact, kept = calls.compare([x.double(), y.double()], 1, 1, *LINEAR_U, True)
    assert out.item() == pytest.approx(exact.item(), abs=1e-5)
    grads = calls.compare_grad(torch.ones(1, 1), [x, y], state, [True, True], 1, 1, *LINEAR_U)
    oracle = calls.compare_grad(
        torch.ones(1, 1, dtype=torch.float64),
        [x.double(), y.double()],
        kept,
        [True, True],
        1,
        1,
        *LINEAR_U,
    )
    for grad, expected in zip(grads, oracle, strict=True):
        assert torch.linalg.vector_norm(grad - expected) < 1e-4 * torch.linalg.vector_norm(expected)
