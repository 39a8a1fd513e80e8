"""The dense products' Triton kernels compiled for GPUs that are not here: their machine code."""

from __future__ import annotations

from typing import Any

import pytest

from sparsekern.ops.masked.triton import plan
from sparsekern.ops.tiled.configurations import shipped_keys

from .. import aot

# Bytes a thread may keep in memory for want of registers: two dozen addresses, as of the similarity
# kernels.
MOST_STACK = 96


@pytest.fixture(autouse=True)
def backend() -> None:
    """Once: nothing here depends on the back end in use."""


@pytest.mark.parametrize("capability", aot.CAPABILITIES, ids=lambda number: f"sm_{number}")
def test_machine_code(capability: int, masked_compilers: aot.Compilers) -> None:
    compiled = aot.lines(masked_compilers, capability)
    shipped = shipped_keys(f"cuda:{capability // 10}.{capability % 10}")
    aot.check_that_all_are_compiled(compiled, [k for k in shipped if k[0] in plan.KERNELS])
    variants: list[dict[str, Any]] = compiled[1:]
    assert {variant["kernel"] for variant in variants} == set(plan.KERNELS)
    for variant in variants:
        assert variant["shared"] <= aot.SHARED[capability], variant
        assert variant["stack"] <= MOST_STACK, variant
        if variant["precision"]:
            # Rows times strides leave 32 bits; float32 without rounding has no tensor cores.
            assert variant["products_of_addresses"] > 0, variant
            tensor_cores = variant["dot"] != "fp32" or variant["precision"] != "ieee"
            assert (variant["matrix_instructions"] > 0) == tensor_cores, variant
        if variant["divisible"]:
            assert variant["wide_accesses"] > 0, variant
        if variant["dot"] == "bf16" and capability == 90 and variant["rows"] >= 64:
            assert variant["warp_groups"] > 0, variant  # wgmma
