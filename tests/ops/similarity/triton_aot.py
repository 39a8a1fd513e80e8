"""Compiles the similarity kernels for GPUs that are not here; see ``tests/ops/aot.py``."""

from __future__ import annotations

import os

os.environ.pop("TRITON_INTERPRET", None)

import torch

from sparsekern.ops.similarity.triton import calls, launches, plan
from tests.ops import aot

# All sizes that choose another tile, and one beyond whole columns. 16 divides all of them, so that
# one variant serves several; sizes that it does not divide come after.
SAMPLES = (8, 16, 32, 64, 128, 256, 304)
HSIC, CKA = 0, 1
LINEAR, RBF, POLYNOMIAL, COSINE = (
    (plan.LINEAR, 0.0, 0.0, plan.U_CENTRING, True),
    (plan.RBF, 0.5, 0.0, plan.U_CENTRING, True),
    (plan.POLYNOMIAL, 3.0, 0.5, plan.DOUBLE_CENTRING, False),
    (plan.COSINE, 0.0, 0.0, plan.U_CENTRING, False),
)


def record(capability: int) -> aot.Recorder:
    """Every variant that the similarity operators launch on this kind of GPU."""
    aot.pretend(capability)
    recorder = aot.Recorder()
    launches.launch = recorder
    launches.configuration = plan.configuration = recorder.configuration
    recorder.prefixes = ("gram", "product", "column")  # the others do not depend on these sizes
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        for n in SAMPLES:
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                if precision == "highest" or dtype == torch.float32:
                    gradients([torch.empty(n, 512, dtype=dtype)] * 3)
    torch.set_float32_matmul_precision("highest")
    for n in SAMPLES:  # not centred: products of float16 as it is
        calls.gram(torch.empty(n, 512, dtype=torch.float16), *LINEAR[:3], plan.NO_CENTRING, False)
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        calls.gram(torch.empty(2048, 512), *LINEAR[:3], plan.NO_CENTRING, False)  # mirrored
    torch.set_float32_matmul_precision("highest")
    large = torch.empty(2048, 512, dtype=torch.bfloat16)
    calls.gram(large, *LINEAR[:3], plan.NO_CENTRING, False)
    calls.gram(large, *LINEAR[:3], plan.U_CENTRING, True)
    gradients([torch.empty(300, 512)] * 3)
    recorder.prefixes = ("",)
    xs = [torch.empty(64, 512)] * 3
    needs = [True] * len(xs)
    for spec, first, quantity in ((LINEAR, 0, CKA), (RBF, 1, HSIC), (COSINE, 0, CKA)):
        out, state = calls.compare(xs, first, quantity, *spec, True)
        calls.compare_grad(out, xs, state, needs, first, quantity, *spec)
    out, state = calls.group_sum(xs, [3], True, *POLYNOMIAL, True)
    calls.group_sum_grad(out, xs, state, needs, [3], True, *POLYNOMIAL)
    gradients([torch.empty(8, 37)] * 40)  # nothing aligned, more than a block of layers
    x = torch.empty(300, 512, dtype=torch.bfloat16)
    for centring in (plan.NO_CENTRING, plan.U_CENTRING):
        spec = (*LINEAR[:3], centring, centring != plan.NO_CENTRING)
        out, state = calls.gram(x, *spec)
        calls.gram_grad(out, x, state, *spec)
    calls.gram(torch.empty(1, 1), *LINEAR[:3], plan.NO_CENTRING, False)
    return recorder


def gradients(xs: list[torch.Tensor]) -> None:
    """A forward and a backward pass of the CKA-SR loss."""
    sizes = [1, len(xs) - 1]
    out, state = calls.group_sum(xs, sizes, False, *LINEAR, True)
    calls.group_sum_grad(out, xs, state, [True] * len(xs), sizes, False, *LINEAR)


if __name__ == "__main__":
    aot.main(record)
