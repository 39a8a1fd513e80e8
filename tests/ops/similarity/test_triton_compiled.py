"""The Triton kernels compiled for GPUs that are not here: what their machine code says.

Every variant that a call can launch, for compute capability 8.0, 9.0, 10.0 and 12.0. Compiling
needs no driver; it begins with the first test of this folder, in processes of its own.
"""

from __future__ import annotations

from typing import Any

import pytest

from sparsekern.ops.masked.triton.plan import KERNELS as MASKED_KERNELS
from sparsekern.ops.tiled.configurations import shipped_keys

from .. import aot

# Bytes a thread may keep in memory for want of registers: two dozen addresses. An accumulator of
# these tiles would be a kilobyte.
MOST_STACK = 96
# Default configurations of gram_columns whose calls take gram_plain on 9.0.
PLAIN = {("tf32", 256), ("bf16", 128), ("bf16", 256), ("fp16", 128), ("fp16", 256)}


@pytest.fixture(autouse=True)
def backend() -> None:
    """Once: nothing here depends on the back end in use."""


@pytest.fixture(scope="module", params=aot.CAPABILITIES, ids=lambda capability: f"sm_{capability}")
def compiled(request: pytest.FixtureRequest, triton_compilers: aot.Compilers) -> list[Any]:
    return aot.lines(triton_compilers, request.param)


@pytest.fixture(scope="module")
def variants(compiled: list[Any]) -> list[dict[str, Any]]:
    return compiled[1:]


def test_every_shipped_configuration_is_compiled(compiled: list[Any]) -> None:
    capability = compiled[1]["capability"]
    shipped = shipped_keys(f"cuda:{capability // 10}.{capability % 10}")
    own = [key for key in shipped if key[0] not in MASKED_KERNELS]
    if capability == 90:
        own = [key for key in own if key[0] != "gram_columns" or key[1:] not in PLAIN]
    aot.check_that_all_are_compiled(compiled, own)


def test_machine_code(variants: list[dict[str, Any]]) -> None:
    kernels = {variant["kernel"] for variant in variants}
    only_there = {"gram_mirrored", "gram_plain"} if variants[0]["capability"] == 90 else set()
    assert kernels == only_there | {
        "add_median_gradient",
        "column_means",
        "combine_row",
        "count_digits",
        "fill_table",
        "gram_apart",
        "gram_columns",
        "gram_few",
        "gram_tiles",
        "inner_products",
        "pair_weights",
        "product_few",
        "product_tiles",
        "reduce_rows",
        "write_entries",
        "write_median",
    }
    for variant in variants:
        capability = variant["capability"]
        assert variant["shared"] <= aot.SHARED[capability], variant
        heavy = variant["kernel"].startswith(("gram", "product", "column"))
        if heavy:
            assert variant["stack"] <= MOST_STACK, variant
            # Samples times strides, and pieces times areas, leave 32 bits.
            assert variant["products_of_addresses"] > 0, variant
            if variant["aligned"]:
                assert variant["wide_accesses"] > 0, variant
        if variant["precision"] and heavy:
            # float64 has tensor cores on 8.0 and 9.0 only; float32 has none without rounding.
            tensor_cores = variant["dot"] != "fp32" or variant["precision"] != "ieee"
            if variant["kernel"] in only_there:  # what they are for
                assert variant["warp_groups"] == variant["matrix_instructions"] > 0
            if variant["dot"] == "fp64":
                tensor_cores = variant["matrix_instructions"] > 0
            assert (variant["matrix_instructions"] > 0) == tensor_cores, variant
