"""What other libraries put around modules, and the names of modules without it."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Child names under which torch.compile, FSDP and activation checkpointing keep what they wrap.
_WRAPPED_AS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrap(module: nn.Module) -> nn.Module:
    """The module under DataParallel, DDP, torch.compile, FSDP and checkpoint wrappers.

    Raises:
        TypeError: if it is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(module).__name__}")
    while True:
        if isinstance(module, nn.DataParallel | DistributedDataParallel):
            module = module.module
            continue
        wrapped = next((module._modules[k] for k in _WRAPPED_AS if k in module._modules), None)
        if wrapped is None:
            return module
        module = wrapped


def clean_name(name: str) -> str:
    """A module's name as it was before anything wrapped it: ``_orig_mod.a.b`` -> ``a.b``."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED_AS)
