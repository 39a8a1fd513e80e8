"""The orders of a mask's kept entries on a GPU: built there, and rebuilt without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ..launching import scratch, where

_INT32_MAX = 2**31 - 1
# Room for more entries than were kept at first: methods that grow and prune keep about as many.
_SPARE, _SPARE_LEAST = 8, 1024  # one in so many, and at least
_DIGITS = 4  # significant bits of the count that algorithms are chosen by


class DeviceOrders:
    """What the CUDA kernels read of a mask, in memory of a fixed size that masks are written to.

    How many entries are kept is known on the device alone after an update. Where they are more
    than there is room for, the kernels walk over the mask: slower, with the same results. The next
    update that has heard of it makes room.

    Args:
        mask: contiguous bool, ``(rows, ...)``.

    Raises:
        ValueError: for 2^31 rows, columns or kept entries or more.
    """

    def __init__(self, mask: Tensor) -> None:
        self._rows, self._columns = mask.shape[0], mask.shape[1:].numel()
        if max(self._rows, self._columns) > _INT32_MAX:
            raise ValueError(f"mask of shape {tuple(mask.shape)} has 2^31 rows or columns or more")
        self._host = _host_word() if mask.is_cuda else None
        self._arrival: torch.cuda.Event | None = None
        self._is_captured = False  # a CUDA graph may update it unseen, in memory that must stay
        self._held: list[list[Tensor]] = []
        self.tensors: list[Tensor] = []
        self.known: int | None = _count(mask)
        self.expected = _coarse(self.known)
        self._make_room(mask, self.known)
        self._build()

    def update(self, mask: Tensor) -> None:
        """Takes what the mask, whose memory it shares, now keeps; waits for nothing."""
        heard = self._heard()
        self.known = None
        if mask.numel() > _INT32_MAX:
            heard = self.known = _count(mask)
        if heard is not None:
            self.expected = _coarse(heard)
            if heard > self.tensors[2].shape[0]:
                self._make_room(mask, heard)
        self._build()
        if self.known is None:
            self._send()

    def count(self, mask: Tensor) -> int:
        """How many entries are kept: waits for the device after an update, and makes room."""
        if self.known is None or self._is_captured:
            found = int(self.tensors[1][-1])
            if found > self.tensors[2].shape[0]:
                self._make_room(mask, found)
                self._build()
            self.known, self.expected = found, _coarse(found)
        return self.known

    def trimmed(self, mask: Tensor) -> list[Tensor]:
        """The tensors, those of one element per kept entry without what they have in reserve."""
        nnz = self.count(mask)
        return [x[:nnz] if i in (2, 4, 5) else x for i, x in enumerate(self.tensors)]

    def _make_room(self, mask: Tensor, nnz: int) -> None:
        spare = max(nnz // _SPARE, _SPARE_LEAST)
        capacity = min(nnz + spare, mask.numel(), _INT32_MAX)
        rows, columns = self._rows, self._columns
        sizes = (rows + 1, capacity, columns + 1, capacity, capacity, rows + 1, columns + 1)
        if self._is_captured:
            self._held.append(self.tensors)
        made = [torch.empty(size, dtype=torch.int32, device=mask.device) for size in sizes]
        self.tensors = [mask, *made]

    def _build(self) -> None:
        row_pointer, kernels = self.tensors[1], native.cuda()
        memory = scratch(kernels.pattern_bytes(self._rows, self._columns), row_pointer.device)
        kernels.build_pattern(where(row_pointer), core_pattern(self.tensors), memory.data_ptr())

    def _send(self) -> None:
        """Lets the count come to the host whenever it is there."""
        count = self.tensors[1][-1:]
        if self._host is None or _is_capturing(count):
            self._is_captured |= count.is_cuda
            self._arrival = None
            return
        self._host.copy_(count, non_blocking=True)
        self._arrival = torch.cuda.Event()
        self._arrival.record(torch.cuda.current_stream(count.device))

    def _heard(self) -> int | None:
        """The latest count that the host knows of, if that of the last update has arrived."""
        if self.known is not None:
            return self.known
        if self._arrival is None or self._host is None or _is_capturing(self.tensors[1]):
            return None  # an event must not be asked while a graph is captured
        if not self._arrival.query():
            return None
        return int(self._host)


def core_pattern(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """What the CUDA kernels are told of a pattern: sizes and addresses."""
    return (
        tensors[1].shape[0] - 1,
        tensors[3].shape[0] - 1,
        tensors[2].shape[0],
        *(tensor.data_ptr() for tensor in tensors[:8]),
    )


def _host_word() -> Tensor:
    """Memory that the device writes a count to by itself."""
    return torch.empty(1, dtype=torch.int32, device="cpu", pin_memory=True)


def _is_capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _count(mask: Tensor) -> int:
    nnz = int(mask.sum())
    if nnz > _INT32_MAX:
        raise ValueError(f"mask of shape {tuple(mask.shape)} keeps 2^31 entries or more")
    return nnz


def _coarse(nnz: int) -> int:
    """Rounded up to a few bits: a compiled graph is one for each number that it has met."""
    step = 1 << max(0, nnz.bit_length() - _DIGITS)
    return -(-nnz // step) * step
