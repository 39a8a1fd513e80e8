"""Launch configurations found by timing: with a clock that reads off what was launched."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import sparsekern as sk
from sparsekern import cli
from sparsekern.ops.similarity.triton import launches, plan
from sparsekern.ops.tiled import configurations
from sparsekern.ops.tiled.configurations import Configuration
from sparsekern.tuning import launches as tuning

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels are interpreted here, on the CPU"
)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuning, "_LAYERS", 2)  # the kernels are interpreted, and the clock exact
    monkeypatch.setattr(tuning, "_ROUNDS", 1)
    monkeypatch.setenv(configurations.VARIABLE, str(tmp_path / "launches.json"))
    configurations.forget()
    with sk.backend("triton"):
        yield tmp_path / "launches.json"
    monkeypatch.undo()
    configurations.forget()


class Clock:
    """Says that a call takes what ``cost`` makes of how one kernel was launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: Callable[..., float]) -> None:
        self.cost, self.tried = cost, set[Configuration]()
        self._launched: list[tuple[str, Configuration]] = []
        original = launches.launch

        def launch(kernel: object, grid: object, config: Configuration, *args: object, **meta):
            self._launched.append((kernel.__name__, config))  # type: ignore[attr-defined]
            if config.warps == 8 and kernel.__name__ == "gram_few":  # type: ignore[attr-defined]
                raise RuntimeError("out of resource")
            original(kernel, grid, config, *args, **meta)

        monkeypatch.setattr(launches, "launch", launch)

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        self._launched.clear()
        call()
        (config,) = {c for name, c in self._launched if name in (plan.FEW, plan.PRODUCT_FEW)}
        self.tried.add(config)
        return self.cost(config)


def test_the_fastest_that_runs_is_found_saved_and_used(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = tuning.workloads(CPU, [torch.float32], samples=(8,), elements=1024)
    few, product = todo
    assert (few.key, few.backward) == (("gram_few", "ieee", 8), False)
    assert (product.key, product.backward) == (("product_few", "ieee", 8), True)
    said: list[str] = []
    clock = Clock(monkeypatch, lambda c: 1 / (c.block * c.warps) + 0.001 * c.stages)
    found = tuning.measure(CPU, [few], clock, said.append)
    # 8 warps fail to launch, and a block of 256 with one stage is what the clock likes best.
    assert found == {few.key: Configuration(256, 4, 1)}
    assert all(config.warps == 4 for config in clock.tried)
    assert said == ["gram_few, ieee, 8 rows: block 256, 4 warps, 1 stages, 6953 -> 1977 us"]

    assert configurations.save("cpu", found) == file
    assert launches.Call([torch.randn(8, 5)] * 2, tuning._SPEC).plan.config.block == 256
    assert str(file) in str(sk.info())


def test_the_shipped_one_stays_without_a_clear_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    (_, product) = tuning.workloads(CPU, [torch.float32], samples=(8,), elements=1024)
    shipped = configurations.shipped("cpu", *product.key)
    said: list[str] = []
    clock = Clock(monkeypatch, lambda c: 1.0 if c == shipped else 0.98)
    assert tuning.measure(CPU, [product], clock, said.append) == {}
    assert len(clock.tried) > 4
    assert "stays" in said[0]


def test_what_gives_other_results_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (few, _) = tuning.workloads(CPU, [torch.float32], samples=(8,), elements=1024)
    shipped = configurations.shipped("cpu", *few.key)
    right = tuning._result

    def wrong(call: object, key: object, entry: Configuration) -> list[torch.Tensor]:
        found = right(call, key, entry)  # type: ignore[arg-type]
        return found if entry == shipped else [x * math.nan for x in found]

    monkeypatch.setattr(tuning, "_result", wrong)
    clock = Clock(monkeypatch, lambda c: 1 / c.block)
    assert tuning.measure(CPU, [few], clock, lambda _: None) == {}
    assert clock.tried == {shipped}


def test_every_configuration_of_a_gpu_has_a_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.device, "device_class", lambda _: "cuda:9.0")
    monkeypatch.setattr(tuning.device, "processors", lambda _: 132)
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    todo = {workload.key for workload in tuning.workloads(CPU, dtypes)}
    for kernel, operands, rows in configurations.shipped_keys("cuda:9.0"):
        if kernel.startswith(("gram", "product")):
            raw = (kernel, operands) in (("gram_columns", "fp16"), ("gram_tiles", "fp16"))
            plain = (operands, rows) in (("tf32", 256), ("bf16", 128), ("bf16", 256))
            raw |= kernel == "gram_columns" and plain  # gram_plain has taken its place
            raw |= kernel == "gram_mirrored"
            covered = any(
                key[0] == kernel and operands in ("any", key[1]) and key[2] == rows for key in todo
            )
            assert covered or raw, (kernel, operands, rows)  # raw: not centred


def test_command_without_a_gpu(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert cli.main(["tune", "--device", "cuda"]) == 2
    assert "there are no launch configurations to tune here" in capsys.readouterr().err
    assert cli.main(["tune", "--device", "cuda", "--dtype", "int8"]) == 2
    assert "--dtype must be of float32, bfloat16, float16, float64, got 'int8'" in (
        capsys.readouterr().err
    )
    assert not file.exists()


def test_command(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for the device: what is found is saved under the device's class."""
    from sparsekern import dispatch

    found = {("gram_few", "ieee", 8): Configuration(256, 4, 1)}
    monkeypatch.setattr(dispatch, "select", lambda device: "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1))
    monkeypatch.setattr(tuning.device, "device_class", lambda _: "cuda:9.0")
    monkeypatch.setattr(tuning.device, "processors", lambda _: 132)
    monkeypatch.setattr(tuning, "measure", lambda *_: found)
    assert cli.main(["tune", "--device", "cuda", "--dry-run"]) == 0
    assert not file.exists()
    assert cli.main(["tune", "--device", "cuda"]) == 0
    assert f"saved in {file}: 1 that differ" in capsys.readouterr().out
    entry = {"block": 256, "warps": 4, "stages": 1}
    assert json.loads(file.read_text()) == {"cuda:9.0": {"gram_few": {"ieee": {"8": entry}}}}
