"""Checks of arguments that several operator families make: errors name the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

_STRIDED = torch.strided
FLOATING = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def floating_tensor(x: object, argument: str) -> Tensor:
    """Checks that x is a dense tensor of a dtype that operators compute on, and returns it.

    Raises:
        TypeError: if it is something else.
    """
    if isinstance(x, Tensor) and x.layout is _STRIDED and x.dtype in FLOATING:
        return x
    found = dense_tensor(x, argument).dtype
    raise TypeError(f"{argument} must be float32, float64, bfloat16 or float16, got {found}")


def dense_tensor(x: object, argument: str) -> Tensor:
    """Checks that x is a dense tensor, of whatever dtype, and returns it.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(x).__name__}")
    if x.layout is not _STRIDED:
        raise TypeError(f"{argument} must be a dense (strided) tensor, got layout {x.layout}")
    return x


def number(value: object, argument: str) -> float:
    """Checks that a value is a real number, and returns it; NaN and infinities are numbers.

    Raises:
        TypeError: if it is something else, a bool or a tensor included.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a number, got {value!r:.80}")
    return float(value)


def whole_number(value: object, argument: str) -> int:
    """Checks that a value is a whole number, and returns it.

    Raises:
        TypeError: if it is something else, a bool or a float included.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a whole number, got {value!r:.80}")
    return int(value)


def real_numbers(**values: object) -> None:
    """Checks that arguments, by their names, are real numbers and not NaN.

    Raises:
        TypeError: as :func:`number`.
        ValueError: for NaN.
    """
    for argument, value in values.items():
        if math.isnan(number(value, argument)):
            raise ValueError(f"{argument} must be a number, got {value}")


def whole_numbers(**values: object) -> None:
    """Checks that arguments, by their names, are whole numbers.

    Raises:
        TypeError: as :func:`whole_number`.
    """
    for argument, value in values.items():
        whole_number(value, argument)


def same_dtype_and_device(tensors: Sequence[Tensor], names: Sequence[str]) -> None:
    """Checks that all tensors have the dtype and the device of the first.

    Raises:
        TypeError: if dtypes differ.
        ValueError: if devices differ.
    """
    dtype, device = tensors[0].dtype, tensors[0].device
    for x, name in zip(tensors[1:], names[1:], strict=True):
        if x.dtype != dtype:
            raise TypeError(f"{name} is {x.dtype} and {names[0]} is {dtype}: expected one dtype")
        if x.device != device:
            raise ValueError(
                f"{name} is on {x.device} and {names[0]} on {device}: expected one device"
            )


def list_of(tensors: Sequence[object], argument: str, *, of: str = "tensor") -> None:
    """Checks that an argument is a list with something in it.

    Args:
        tensors: the list.
        argument: its name.
        of: what one entry is, as the error about an empty list says it.

    Raises:
        TypeError: if it is no list or other sequence.
        ValueError: if it is empty.
    """
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(f"{argument} must be a list of tensors, got {type(tensors).__name__}")
    if not tensors:
        raise ValueError(f"{argument} is empty: expected at least one {of}")


def names_of(tensors: Sequence[object], argument: str) -> list[str]:
    """How errors name the entries of a list, checked by :func:`list_of`: ``xs[0]``, ``xs[1]``."""
    list_of(tensors, argument)
    return [f"{argument}[{index}]" for index in range(len(tensors))]
