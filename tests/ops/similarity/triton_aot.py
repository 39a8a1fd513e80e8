"""Compiles the Triton kernels for GPUs that are not here, from the launches that calls would make.

``python triton_aot.py 80 90`` prints one JSON line per kernel variant and compute capability:
registers' spills, shared memory, matrix instructions; and before them one with the configurations
that these launches asked for. No driver is needed. Runs in a process of its own, for Triton either
interprets or compiles, from its import on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsekern.ops.similarity.triton import calls, configurations, device, launches, plan

PROCESSORS = 132
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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


class Recorder:
    """Stands in for the launching of kernels and keeps what each variant was launched with."""

    def __init__(self) -> None:
        self.variants: dict[
            str, tuple[Any, dict[str, str], dict[str, Any], dict[Any, Any], Any]
        ] = {}
        self.prefixes: tuple[str, ...] = ("",)
        self.asked: set[configurations.Key] = set()

    def configuration(self, device_class: str, *key: Any) -> Any:
        """Stands in for the choice of configurations, and keeps what was asked for."""
        self.asked.add(key)  # type: ignore[arg-type]
        return configurations.configuration(device_class, *key)

    def __call__(self, kernel: Any, grid: Any, config: Any, *args: Any, **meta: Any) -> None:
        if not kernel.__name__.startswith(self.prefixes):
            return
        signature: dict[str, Any] = {}
        constants: dict[str, Any] = dict(meta)
        attributes: dict[Any, Any] = {}
        for index, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
            name = parameter.name
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + TYPES[value.dtype]
                if value.data_ptr() % 16 == 0:
                    attributes[(index,)] = [["tt.divisibility", 16]]
            elif isinstance(value, tuple):
                signature[name] = ("i64",) * len(value)
            elif value == 1 and not parameter.do_not_specialize:
                constants[name] = 1  # as the just-in-time compiler does
            else:
                signature[name] = "i32" if value < 2**31 else "i64"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    attributes[(index,)] = [["tt.divisibility", 16]]
        ordered = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
        key = repr(
            (kernel.__name__, ordered, sorted(constants.items(), key=str), config, attributes)
        )
        self.variants.setdefault(key, (kernel, ordered, constants, attributes, config))


def record(capability: int) -> Recorder:
    """Every variant that the similarity operators launch on this kind of GPU."""
    name = f"cuda:{capability // 10}.{capability % 10}"
    device.device_class = lambda _: name
    device.processors = lambda _: PROCESSORS
    recorder = Recorder()
    launches._launch = recorder
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


def build(variant: Any, capability: int) -> dict[str, Any]:
    kernel, signature, constants, attributes, config = variant
    options = {
        "num_warps": config.warps,
        "num_stages": config.stages,
        "enable_fp_fusion": True,
    }
    target = GPUTarget("cuda", capability, 32)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = compiled.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "capability": capability,
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
        "shared": compiled.metadata.shared,
        "precision": str(constants.get("PRECISION", "")),
        "dot": str(constants.get("DOT", "")),
        "rows": constants.get("ROWS", constants.get("BLOCK_N", 0)),
        "aligned": bool(constants.get("ALIGNED", False)),
        "matrix_instructions": len(
            re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", ptx)
        ),
        "wide_accesses": len(re.findall(r"\.v4\.b32|\.v2\.b64|cp\.async\.c[ag]\S* .*0x10", ptx)),
        "products_of_addresses": len(re.findall(r"(?:mul|mad)\.lo\.s64", ptx)),
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        recorder = record(int(argument))
        print(json.dumps(sorted(recorder.asked)))
        for found in recorder.variants.values():
            print(json.dumps(build(found, int(argument))), flush=True)
