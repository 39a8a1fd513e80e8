"""Bitmask-compressed weights: one bit for each weight, and a value for each that is kept.

The layout, which ``csrc/cuda/bitmask.h`` describes, is defined here once more in plain PyTorch:
what the kernels are held to, and what is taken where they do not run.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import native
from ..launching import DEVICES, scratch, where
from ..registry import DTYPE_CODES, register, run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = (16, 64)  # rows and columns
_UNIT = 16  # bytes that the values of a tile are a multiple of
_LINEAR, _EXPAND = "masked_cuda_bitmask_linear", "masked_cuda_bitmask_expand"
_BitmaskTuple: TypeAlias = tuple[int, int, int, int, int, int]


class Bitmask(NamedTuple):
    """A compressed weight.

    Attributes:
        words: ``(tiles, 32)`` int32, one word for each lane.
        offsets: ``(tiles + 1,)`` int32, where the values of a tile begin, in units of 16 bytes.
        values: of the weight's dtype; those of a tile together, zeros up to the next unit.
        rows: of the weight.
        columns: of the weight.
    """

    words: Tensor
    offsets: Tensor
    values: Tensor
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.words.nbytes + self.offsets.nbytes + self.values.nbytes


def tiles_of(rows: int, columns: int) -> tuple[int, int]:
    """How many tiles lie below each other and side by side."""
    return -(-rows // TILE[0]), -(-columns // TILE[1])


def pack(mask: Tensor, weight: Tensor, nnz: int, kernels: bool) -> Bitmask:
    """Compresses a weight.

    Args:
        mask: bool ``(rows, columns)``, contiguous.
        weight: ``(rows, columns)`` of one of :data:`DTYPES`; what lies under the mask is not read.
        nnz: how many entries the mask keeps.
        kernels: whether the CUDA kernels do it.
    """
    rows, columns = weight.shape
    down, across = tiles_of(rows, columns)
    tiles = down * across
    # No tile wastes a whole unit, so that room is known without asking the device.
    room = nnz + tiles * (_unit(weight.dtype) - 1)
    empty = functools.partial(torch.empty, device=weight.device)
    result = Bitmask(
        empty((tiles, 32), dtype=torch.int32),
        empty(tiles + 1, dtype=torch.int32),
        empty(-(-room // _unit(weight.dtype)) * _unit(weight.dtype), dtype=weight.dtype),
        rows,
        columns,
    )
    if kernels and tiles:
        place = where(weight)
        native.cuda().pack_bitmask(place, mask.data_ptr(), _tuple(result))
        repack(result, weight, kernels)
        return result
    kept = _by_bits(mask)  # (tiles, lanes, bits)
    bits = torch.arange(32, device=mask.device)
    words = (kept.long() << bits).sum(dim=2)
    result.words.copy_(torch.where(words >= 1 << 31, words - (1 << 32), words))
    units = -(-kept.sum(dim=(1, 2)) // _unit(weight.dtype))
    result.offsets.copy_(F.pad(units.cumsum(0), (1, 0)))
    repack(result, weight, kernels)
    return result


def repack(packed: Bitmask, weight: Tensor, kernels: bool) -> None:
    """Takes other values of the same kept entries."""
    if kernels and packed.words.numel():
        weight = weight if weight.stride(1) == 1 and not weight.is_neg() else weight.contiguous()
        native.cuda().pack_values(
            where(weight), weight.data_ptr(), weight.stride(0), _tuple(packed)
        )
        return
    kept = _kept(packed)
    packed.values.zero_()
    packed.values[_positions(packed, kept)] = _by_bits(weight)[kept]


def expand(packed: Bitmask, kernels: bool) -> Tensor:
    """The dense weight, zeros where nothing is kept: ``(rows, columns)``."""
    if kernels:
        return run(_EXPAND, *packed)  # type: ignore[no-any-return]
    shape, device = (packed.rows, packed.columns), packed.values.device
    kept = _kept(packed)
    down, across = tiles_of(*shape)
    tiles = packed.values.new_zeros(down * across, *TILE)
    rows, columns = _places(device)
    tile, lane, bit = kept.nonzero(as_tuple=True)
    tiles[tile, rows[lane, bit], columns[lane, bit]] = packed.values[_positions(packed, kept)]
    whole = tiles.view(down, across, *TILE).transpose(1, 2)
    whole = whole.reshape(down * TILE[0], across * TILE[1])
    return whole[: shape[0], : shape[1]].contiguous()


def linear(x: Tensor, packed: Bitmask, bias: Tensor | None, tensor_cores: bool) -> Tensor:
    """``x Wᵀ + b`` on the CUDA kernels: ``(batch, columns)`` -> ``(batch, rows)``.

    Args:
        x: of the dtype of the values.
        packed: the weight.
        bias: ``(rows,)`` of that dtype, or None.
        tensor_cores: whether they multiply; in float32 they never do.
    """
    words, offsets, values, rows, columns = packed
    return run(_LINEAR, x, words, offsets, values, rows, columns, bias, tensor_cores)  # type: ignore[no-any-return]


def _linear(
    x: Tensor,
    words: Tensor,
    offsets: Tensor,
    values: Tensor,
    rows: int,
    columns: int,
    bias: Tensor | None,
    tensor_cores: bool,
) -> Tensor:
    x = x if x.stride(1) == 1 and not x.is_neg() else x.contiguous()
    batch = x.shape[0]
    out = torch.empty((batch, rows), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    if columns == 0:
        return out.zero_() if bias is None else out.copy_(bias)
    kernels, place = native.cuda(), where(x)
    packed = _tuple(Bitmask(words, offsets, values, rows, columns))
    shift = None if bias is None else bias.contiguous()
    size = kernels.bitmask_scratch(place, packed, batch, tensor_cores)
    memory = scratch(size, x.device) if size else None
    kernels.bitmask_product(
        place,
        packed,
        x.data_ptr(),
        x.stride(0),
        batch,
        tensor_cores,
        0 if shift is None else shift.data_ptr(),
        0 if memory is None else memory.data_ptr(),
        out.data_ptr(),
    )
    return out


def _linear_fake(
    x: Tensor, words: Tensor, offsets: Tensor, values: Tensor, rows: int, *_: object
) -> Tensor:
    return x.new_empty(x.shape[0], rows)


def _expand(words: Tensor, offsets: Tensor, values: Tensor, rows: int, columns: int) -> Tensor:
    dense = values.new_empty(rows, columns)
    if dense.numel():
        packed = _tuple(Bitmask(words, offsets, values, rows, columns))
        native.cuda().expand_bitmask(where(dense), packed, dense.data_ptr())
    return dense


def _expand_fake(words: Tensor, offsets: Tensor, values: Tensor, rows: int, columns: int) -> Tensor:
    return values.new_empty(rows, columns)


register(
    _EXPAND,
    "(Tensor words, Tensor offsets, Tensor values, int rows, int columns) -> Tensor",
    _expand,
    _expand_fake,
    devices=DEVICES,
)
register(
    _LINEAR,
    "(Tensor x, Tensor words, Tensor offsets, Tensor values, int rows, int columns, Tensor? bias,"
    " bool tensor_cores) -> Tensor",
    _linear,
    _linear_fake,
    devices=DEVICES,
)


def _tuple(packed: Bitmask) -> _BitmaskTuple:
    return (
        packed.words.data_ptr(),
        packed.offsets.data_ptr(),
        packed.values.data_ptr(),
        DTYPE_CODES[packed.values.dtype],
        packed.rows,
        packed.columns,
    )


def _unit(dtype: torch.dtype) -> int:
    """Values in 16 bytes."""
    return _UNIT // dtype.itemsize


def _places(device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column in its tile of each bit of each lane: ``(32, 32)`` each."""
    lane = torch.arange(32, device=device)[:, None]
    bit = torch.arange(32, device=device)[None, :]
    rows = lane // 4 + (bit & 2) * 4
    columns = lane % 4 * 2 + bit % 2 + (bit & 4) * 2 + bit // 8 * 16
    return rows, columns


def _by_bits(matrix: Tensor) -> Tensor:
    """Entries by tile, lane and bit, zeros beyond the edges: ``(tiles, 32, 32)``."""
    down, across = tiles_of(*matrix.shape)
    padding = (0, across * TILE[1] - matrix.shape[1], 0, down * TILE[0] - matrix.shape[0])
    tiles = F.pad(matrix, padding).view(down, TILE[0], across, TILE[1]).transpose(1, 2)
    rows, columns = _places(matrix.device)
    return tiles.reshape(-1, *TILE)[:, rows, columns]


def _kept(packed: Bitmask) -> Tensor:
    bits = torch.arange(32, device=packed.words.device)
    return (packed.words.long()[:, :, None] >> bits & 1).bool()


def _positions(packed: Bitmask, kept: Tensor) -> Tensor:
    """Where the value of each kept entry is, by tile, lane and bit: ``(nnz,)``."""
    flat = kept.flatten(1)
    before = flat.long().cumsum(dim=1) - 1
    first = packed.offsets[:-1].long() * _unit(packed.values.dtype)
    return (first[:, None] + before)[flat]
