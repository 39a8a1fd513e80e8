"""Dense products with a mask on a GPU: G4, fused with it or torch's. There only where there is one.

Small and middling batches, where the bytes of weight, mask and gradient are what a product takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops.masked import cuda_dense, scores
from ..case import OURS, AnyCase, Case, Contender, Cost
from ..gate import relative_distance
from .gpu import SUITE, bounds

_BATCHES = (16, 64, 256, 512)
_SIZE = 4096
_KEPT = 0.1
_TORCH = "eager PyTorch"
_PARTS = {
    "forward": "x (W⊙M)ᵀ",
    "input": "the gradient of x, g (W⊙M)",
    "weight": "the weight's gradient taken densely, M⊙(gᵀ x)",
}


def cases(quick: bool) -> list[AnyCase]:
    """The cases of this family."""
    return dense_cases(quick) if torch.cuda.is_available() else []


def dense_cases(quick: bool) -> list[AnyCase]:
    """The cases, whether there is a GPU or not."""
    size = 140 if quick else _SIZE
    batches = (20,) if quick else _BATCHES
    return [
        *(_product(part, batch, size) for part in _PARTS for batch in batches),
        _step(size),
    ]


def _inputs(batch: int, size: int) -> Callable[[torch.dtype, int], dict[str, Tensor]]:
    def make(dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return {
            "x": random(batch, size).to(dtype),
            "grad": random(batch, size).to(dtype),
            "weight": (random(size, size) / size**0.5).to(dtype),
            "mask": torch.rand(size, size, generator=generator) < _KEPT,
        }

    return make


def _product(part: str, batch: int, size: int) -> Case:
    weights = size * size
    chosen, fused, eager, dense = _CALLS[part]
    return Case(
        id=f"G4-dense-{part}-{batch}",
        suite=SUITE,
        title=f"{_PARTS[part]}, batch {batch}, {size} x {size}, as dense products",
        reason="at small batches the masked copy's bytes take longer than the product",
        shapes=f"({batch}, {size}, {size})",
        inputs=_inputs(batch, size),
        oracle=lambda made: eager({name: _wide(value) for name, value in made.items()}),
        error=relative_distance,
        bounds=bounds(),
        cost=Cost(2 * batch * weights, weights + 2 * batch * size, weights),
        contenders=(
            Contender(OURS, f"{OURS}, as it chooses", chosen, group=OURS),
            Contender("fused", f"{OURS}, fused", fused, group=OURS),
            Contender("torch_masked", "torch's product and a mask", eager, group=_TORCH),
            Contender("dense", "dense, no mask", dense, same_work=False),
        ),
        most_copies=4,
    )


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _forward(made: dict[str, Tensor]) -> list[Tensor]:
    return [cuda_dense.forward(made["x"], made["weight"], None, [made["mask"]], False)[0]]


def _input(made: dict[str, Tensor]) -> list[Tensor]:
    return [cuda_dense.input_grad(made["grad"], made["weight"], made["grad"], [made["mask"]])]


def _weight(made: dict[str, Tensor]) -> list[Tensor]:
    return [cuda_dense.weight_grad(made["grad"], made["x"], made["weight"], [made["mask"]])]


def _fused_forward(made: dict[str, Tensor]) -> list[Tensor]:
    from ...ops.masked.triton import calls

    return [calls.forward(made["x"], made["weight"], None, made["mask"])]


def _fused_input(made: dict[str, Tensor]) -> list[Tensor]:
    from ...ops.masked.triton import calls

    return [calls.input_grad(made["grad"], made["weight"], made["mask"])]


def _fused_weight(made: dict[str, Tensor]) -> list[Tensor]:
    from ...ops.masked.triton import calls

    return [calls.weight_grad(made["grad"], made["x"], made["mask"], made["weight"].dtype)]


def _torch_forward(made: dict[str, Tensor]) -> list[Tensor]:
    return [made["x"] @ (made["weight"] * made["mask"]).T]


def _torch_input(made: dict[str, Tensor]) -> list[Tensor]:
    return [made["grad"] @ (made["weight"] * made["mask"])]


def _torch_weight(made: dict[str, Tensor]) -> list[Tensor]:
    return [(made["grad"].T @ made["x"]).mul_(made["mask"])]


_Call = Callable[[dict[str, Tensor]], list[Tensor]]
# As the choice has it, fused, torch with a mask, torch without.
_CALLS: dict[str, tuple[_Call, _Call, _Call, _Call]] = {
    "forward": (_forward, _fused_forward, _torch_forward, lambda m: [m["x"] @ m["weight"].T]),
    "input": (_input, _fused_input, _torch_input, lambda m: [m["grad"] @ m["weight"]]),
    "weight": (_weight, _fused_weight, _torch_weight, lambda m: [m["grad"].T @ m["x"]]),
}


def _step(size: int) -> Case:
    """OptG's pass over a weight between backward and the optimizer."""

    def inputs(dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
        made = _inputs(1, size)(dtype, seed)
        removed = ~made["mask"]
        grad = _inputs(1, size)(dtype, seed + 1)["weight"]
        zeros = torch.zeros(size, size, dtype=torch.float64 if dtype == torch.float64 else None)
        return {
            "weight": made["weight"].masked_fill(removed, 0),
            "hidden": made["weight"],
            "grad": grad,
            "removed": removed,
            "velocity": zeros,
            "score": zeros.clone(),
        }

    # It works in place: after a first step, and without momentum, every further one leaves this.
    def started(made: dict[str, Tensor]) -> dict[str, Tensor]:
        copies = {name: value.clone() for name, value in made.items()}
        return eager(copies)

    def oracle(made: dict[str, Tensor]) -> list[Tensor]:
        whole, grad = made["hidden"].double(), made["grad"].double()
        kept = grad.masked_fill(made["removed"], 0)
        return [whole, kept, whole * kept]

    def ours(made: dict[str, Tensor]) -> dict[str, Tensor]:
        scores.step_(**made, momentum=0.0, rate=1e-3)
        return made

    def eager(made: dict[str, Tensor]) -> dict[str, Tensor]:
        scores.step_by_torch_(**made, momentum=0.0, rate=1e-3)
        return made

    def results(made: dict[str, Tensor]) -> Sequence[Tensor]:
        return [made["weight"], made["grad"], made["velocity"]]

    rest: dict[str, Any] = {"prepare": started, "finish": results}
    weights = size * size
    return Case(
        id="G4-scores",
        suite=SUITE,
        title=f"OptG's scores, W and M⊙g of a {size} x {size} weight, in place",
        reason="between backward and the optimizer, at every step",
        shapes=f"{size} x {size}",
        inputs=inputs,
        oracle=oracle,
        error=relative_distance,
        bounds=bounds(),
        cost=Cost(0, 4 * weights, 17 * weights),
        contenders=(
            Contender(OURS, OURS, ours, group=OURS, **rest),
            Contender("torch", "the same in plain PyTorch", eager, group=_TORCH, **rest),
        ),
        most_copies=4,
    )
