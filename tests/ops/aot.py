"""Compiles Triton kernels for GPUs that are not here, from the launches that calls would make.

The script ``triton_aot.py`` of a family of operators, called with a compute capability such as 90,
prints a line with the configurations that its launches asked for, and then a JSON line for each
kernel variant: registers' spills, shared memory, matrix instructions. No driver is needed. It runs
in a process of its own, for Triton either interprets or compiles, from its import on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekern
from sparsekern.ops.tiled import configurations, device

CAPABILITIES = (80, 90, 100, 120)
# Bytes of shared memory that a program may have.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
PROCESSORS = 132
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
Compilers = dict[int, tuple[subprocess.Popen[bytes], Path]]


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
            elif isinstance(value, float):
                signature[name] = "fp32"
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


def pretend(capability: int) -> None:
    """Has launches chosen for this kind of GPU."""
    name = f"cuda:{capability // 10}.{capability % 10}"
    device.device_class = lambda _: name
    device.processors = lambda _: PROCESSORS


def build(variant: Any, capability: int) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature, constants, attributes, config = variant
    options = {
        "num_warps": config.warps,
        "num_stages": config.stages,
        "enable_fp_fusion": True,
    }
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    target = GPUTarget("cuda", capability, 32)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [str(tools / "cuobjdump"), "--dump-resource-usage", cubin.name]
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
        "divisible": all(
            (index,) in attributes or kind == "constexpr" or kind[0] == "*"
            for index, kind in enumerate(signature.values())
        ),
        "warp_groups": len(re.findall(r"wgmma\.mma_async", ptx)),
        "matrix_instructions": len(
            re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", ptx)
        ),
        "wide_accesses": len(re.findall(r"\.v4\.b32|\.v2\.b64|cp\.async\.c[ag]\S* .*0x10", ptx)),
        "products_of_addresses": len(re.findall(r"(?:mul|mad)\.lo\.s64", ptx)),
    }


def main(record: Callable[[int], Recorder]) -> None:
    """What a family's script does: ``record`` makes its launches for a compute capability."""
    for argument in sys.argv[1:]:
        recorder = record(int(argument))
        print(json.dumps(sorted(recorder.asked)))
        for found in recorder.variants.values():
            print(json.dumps(build(found, int(argument))), flush=True)


def compilers(script: Path, factory: pytest.TempPathFactory) -> Iterator[Compilers]:
    """One process per compute capability, behind everything else, and where it writes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment[configurations.VARIABLE] = configurations.SHIPPED
    root = str(Path(sparsekern.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    behind = ["nice", "-n", "10"] if shutil.which("nice") else []
    started = {}
    for capability in CAPABILITIES:
        folder = factory.mktemp(f"sm_{capability}")
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            command = [*behind, sys.executable, "-W", "ignore", str(script), str(capability)]
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        started[capability] = (process, folder)
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


def lines(started: Compilers, capability: int) -> list[Any]:
    """What the process of a capability has printed; waits for it."""
    process, folder = started[capability]
    assert process.wait() == 0, (folder / "err").read_text()[-2000:]
    return [json.loads(line) for line in (folder / "out").read_text().splitlines()]


def check_that_all_are_compiled(compiled: list[Any], shipped: list[configurations.Key]) -> None:
    """That launches asked for each of these configurations."""
    for kernel, operands, rows in shipped:
        assert any(
            key[0] == kernel and operands in ("any", key[1]) and rows in (0, key[2])
            for key in compiled[0]
        ), (kernel, operands, rows)
