"""The ranks of torch.distributed that share a comparison; alone where there are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class TeamError(RuntimeError):
    """Another rank failed, and this one stops with it."""


class Team:
    """Sums and gathers over all ranks of the default process group.

    Args:
        distributed: None for yes where a process group of several ranks is initialised; True
            requires one; False works alone.

    Raises:
        ValueError: for True without an initialised process group.
    """

    def __init__(self, distributed: bool | None = None) -> None:
        ready = dist.is_available() and dist.is_initialized()
        if distributed and not ready:
            raise ValueError(
                "distributed=True needs torch.distributed.init_process_group (torchrun) first"
            )
        self.active = ready and distributed is not False and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.active else 0
        self.size = dist.get_world_size() if self.active else 1

    def _device(self) -> torch.device:
        """Where tensors must be for the group's back end."""
        if dist.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, on every rank, where ``x`` is."""
        if not self.active:
            return x
        moved = x.detach().to(self._device(), copy=True).contiguous()
        dist.all_reduce(moved)
        return moved.to(x.device)

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """The tensor of one rank, on every rank; ``x`` has its shape and dtype elsewhere."""
        if not self.active:
            return x
        moved = x.detach().to(self._device(), copy=True).contiguous()
        dist.broadcast(moved, source)
        return moved.to(x.device)

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of each rank, on every rank."""
        if not self.active:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Tensor, width: int) -> Tensor:
        """``(n_r, width)`` of each rank, one below the other in the order of ranks."""
        if not self.active:
            return rows
        counts = self.gather(len(rows))
        most = max(counts)
        padded = torch.zeros(most, width, dtype=rows.dtype, device=self._device())
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def meet(self, stage: str, value: Any, failure: BaseException | None = None) -> list[Any]:
        """A value of each rank, and a way out for all where one has failed or gone on without.

        Every rank must come here for the same stage. One that failed comes to any stage with its
        failure, so that no other waits for it.

        Raises:
            BaseException: this rank's own failure.
            TeamError: naming the rank that failed or is at another stage.
        """
        if not self.active:
            if failure is not None:
                raise failure
            return [value]
        states = self.gather((stage, value, None if failure is None else str(failure)))
        if failure is not None:
            raise failure
        for rank, (theirs, _, message) in enumerate(states):
            if message is not None:
                raise TeamError(f"rank {rank} failed: {message}")
            if theirs != stage:
                late = rank if stage == "start" else self.rank
                raise TeamError(f"rank {late} has no data: every rank needs at least one batch")
        return [state[1] for state in states]

    def same_labels(self, rows: list[str], columns: list[str]) -> tuple[list[str], list[str]]:
        """The layers' names; those of another rank where this one had no data.

        Raises:
            ValueError: if ranks compared different layers, or none had data.
        """
        known = [names for names in self.gather((rows, columns)) if names[0] or names[1]]
        if not known:
            raise ValueError("the loader gave no batches on any rank")
        if any(names != known[0] for names in known):
            raise ValueError("ranks ran different layers: every rank must have the same models")
        names: tuple[list[str], list[str]] = known[0]
        return names
