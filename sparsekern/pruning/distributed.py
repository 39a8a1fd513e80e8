"""Masks and scores of data-parallel training: the same on all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def group_of(model: nn.Module) -> torch.distributed.ProcessGroup | None:
    """The process group of a DDP model, under ``torch.compile`` or not; None for others."""
    inner: nn.Module | None = model
    while inner is not None:
        if isinstance(inner, DistributedDataParallel):
            return inner.process_group
        inner = inner._modules.get("_orig_mod")
    return None


def broadcast(masks: Sequence[Tensor], group: torch.distributed.ProcessGroup | None) -> None:
    """Overwrites bool masks by those of the group's first rank."""
    if group is None:
        return
    first = torch.distributed.get_global_rank(group, 0)
    for mask in masks:
        torch.distributed.broadcast(mask.view(torch.uint8), src=first, group=group)


def mean(tensors: Sequence[Tensor], group: torch.distributed.ProcessGroup | None) -> None:
    """Overwrites tensors by their mean over the group's ranks."""
    if group is None:
        return
    world = torch.distributed.get_world_size(group)
    for tensor in tensors:
        torch.distributed.all_reduce(tensor, group=group)
        tensor.div_(world)
