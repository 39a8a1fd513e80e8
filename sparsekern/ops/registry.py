"""How compiled operators meet torch: registration, gradients taken once, the choice of back end.

torch.compile sees opaque nodes of torch.library; in eager mode :func:`run` calls the
implementations directly, which saves the dispatcher's 2-3 µs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import dispatch

# How the compiled core names the dtypes: csrc/cpu/dtype.h.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

_library = torch.library.Library("sparsekern", "FRAGMENT")
_implementations: dict[str, Callable[..., Any]] = {}


def register(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    direct: Callable[..., Any] | None = None,
    devices: Sequence[str] = ("CPU",),
) -> None:
    """Defines the operator ``sparsekern::name`` and its kernel.

    Args:
        name: of the operator; its family comes first, as in ``similarity_compare``.
        schema: arguments and results as torch.library writes them, ``"(Tensor x) -> Tensor"``.
        implementation: computes on plain tensors, with no regard to gradients.
        fake: the same arguments to empty tensors of the shapes and dtypes of the results.
        direct: what :func:`run` calls in eager mode instead of the implementation: its results may
            share memory, which those of an operator may not.
        devices: whose tensors it takes, as torch's dispatch keys.
    """
    _library.define(name + schema)
    for device in devices:
        _library.impl(name, implementation, device)
    torch.library.register_fake(f"sparsekern::{name}", fake, lib=_library)
    _implementations[name] = direct or implementation


def run(name: str, *arguments: Any) -> Any:
    """Calls an operator: itself in eager mode on plain tensors, else through the dispatcher."""
    return operator(name, arguments)(*arguments)


def operator(name: str, arguments: Sequence[Any]) -> Callable[..., Any]:
    """What :func:`run` calls: for who knows which of the arguments need to be looked at.

    Args:
        name: of the operator.
        arguments: those that may be tensors of a subclass.
    """
    if torch.compiler.is_compiling() or not are_plain(arguments):
        return getattr(torch.ops.sparsekern, name)  # type: ignore[no-any-return]
    return _implementations[name]


_PLAIN = frozenset((Tensor, torch.nn.Parameter, int, float, bool, str, type(None)))


def are_plain(arguments: Sequence[Any]) -> bool:
    """False where a tensor is of a subclass, which may have no memory of its own."""
    if _PLAIN.issuperset(map(type, arguments)):
        return True
    for argument in arguments:
        kind = type(argument)
        if kind in _PLAIN or (kind is list and are_plain(argument)):
            continue
        if isinstance(argument, Tensor) or kind is list:
            return False
    return True


def back_end(
    device: torch.device,
    reference: ModuleType,
    cpu: ModuleType,
    triton: ModuleType | None = None,
    cuda: ModuleType | None = None,
) -> Any:
    """The module of an operator family that computes on tensors of this device, here and now.

    Args:
        device: of the tensors.
        reference: the family in plain PyTorch.
        cpu: the family on the compiled core.
        triton: the family on Triton, where it has kernels there.
        cuda: the family on the CUDA kernels, where it has some.

    Raises:
        RuntimeError: if the back end asked for is missing or has nothing for this family.
    """
    choice = dispatch.select(device, has_cuda=cuda is not None)
    module = {"cpu": cpu, "triton": triton, "cuda": cuda}.get(choice, reference)
    if module is None:
        if dispatch.requested() == choice:
            family = reference.__name__.rpartition(".")[0].rpartition(".")[2]
            raise RuntimeError(
                f"the {choice} back end was asked for and has no kernels for {family} operators"
            )
        return reference
    if module is reference:
        return reference
    if not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    ):
        # Forward-mode derivatives, vmap, and torch.jit.trace, which would write the result down as
        # a constant: plain PyTorch has them.
        return reference
    return module


def needs_grad(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd will ask for the gradient of what is computed from these."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # any() of a generator takes three times as long
            if tensor.requires_grad:
                return True
    return False


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as torch.compile takes them: of one that is there twice, a view stands for one.

    It refuses an autograd.Function that is given the same tensor twice.
    """
    if not torch.compiler.is_compiling():
        return list(tensors)
    found: list[Tensor] = []
    for x in tensors:
        found.append(x.view_as(x) if any(x is other for other in found) else x)
    return found


def run_grad(family: str, name: str, grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Runs a backward operator: gradients that refuse to be differentiated again.

    Args:
        family: of operators, as the refusal names it.
        name: of the backward operator.
        grad: the gradient with respect to the forward result, its first argument.
        arguments: the others.
    """
    if not torch.is_grad_enabled():
        return _as_tuple(run(name, grad, *arguments))
    with torch.no_grad():  # create_graph=True: the graph is _Once's to make
        gradients = _as_tuple(run(name, grad, *arguments))
    source = grad if grad.requires_grad else grad.detach().requires_grad_()
    return _Once.apply(family, source, *gradients)  # type: ignore[no-any-return]


def _as_tuple(gradients: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (gradients,) if isinstance(gradients, Tensor) else tuple(gradients)


class _Once(torch.autograd.Function):
    """Identity on gradients that cannot be differentiated again; says so if anybody tries."""

    @staticmethod
    def forward(ctx: Any, family: str, grad: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        ctx.family = family
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            f"the gradient of sparsekern's compiled {ctx.family} operators cannot be "
            'differentiated again; compute them inside `with sparsekern.backend("reference"):` '
            "for that"
        )


def only_needed(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients as autograd wants them: None where an input needs none."""
    if all(needs):
        return tuple(gradients)
    return tuple(
        gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)
    )
