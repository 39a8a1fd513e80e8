"""How a run is made: back end, dtype, threads, effort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import dispatch
from .timing import FULL, QUICK, Effort


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        backend: what sparsekern runs on: "auto", "cpu" or "reference".
        dtype: one of :data:`sparsekern.bench.case.DTYPES`.
        threads: of torch, the compiled core and every baseline.
        quick: small shapes, few rounds, no memory measurement.
        compare: names of the baselines to keep, or None for all.
        timed: False for the correctness gate alone.
        device: "cpu" or "cuda": where the inputs are, and with them the work.
        extras: whether the floor, host overhead and memory are measured too.
        budget: seconds for the timing of one case, or None for the default.
        memory: "with" the times (in full runs), "without", or "only".
    """

    backend: str = "auto"
    dtype: str = "float32"
    threads: int = 1
    quick: bool = False
    compare: tuple[str, ...] | None = None
    timed: bool = True
    extras: bool = True
    device: str = "cpu"
    budget: float | None = None
    memory: str = "with"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def effort(self) -> Effort:
        """How much time to spend on timing."""
        effort = QUICK if self.quick else FULL
        return effort if self.budget is None else effort.within(self.budget)

    @property
    def measures_memory(self) -> bool:
        """Whether peak memory is measured: quick runs leave it out unless it is all there is."""
        with_times = self.memory == "with" and self.extras and not self.quick
        return self.device == "cpu" and (self.memory == "only" or with_times)

    @property
    def described(self) -> dict[str, Any]:
        """What times depend on, as results files keep it."""
        return {
            "backend": self.resolved_backend,
            "dtype": self.dtype,
            "threads": self.threads,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "quick": self.quick,
            "device": self.device,
        }

    @property
    def resolved_backend(self) -> str:
        """The back end that the choice comes down to on tensors of this device."""
        if self.backend != "auto":
            return self.backend
        with dispatch.backend("auto"):
            return dispatch.select(torch.device(self.device))
