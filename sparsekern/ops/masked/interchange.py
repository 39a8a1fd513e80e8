"""Patterns in the forms of others: CSR, torch's sparse layouts, torch's pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .pattern import SparsityPattern

_INTEGERS = (torch.int32, torch.int64)


def mask_from_csr(pointer: Tensor, index: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The mask of a CSR matrix; see :meth:`SparsityPattern.from_csr`."""
    for name, x in (("pointer", pointer), ("index", index)):
        if not isinstance(x, Tensor) or x.dtype not in _INTEGERS:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be an int32 or int64 tensor, got {found}")
        if x.dim() != 1:
            raise ValueError(f"{name} must have one dimension, got shape {tuple(x.shape)}")
        if x.device != pointer.device:
            raise ValueError(
                f"{name} is on {x.device} and pointer on {pointer.device}: expected one device"
            )
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    if not sizes or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"shape must be (rows, ...) in whole numbers, got {shape!r}")
    rows, columns = sizes[0], torch.Size(sizes[1:]).numel()
    lengths = pointer.diff()
    if pointer.shape != (rows + 1,) or pointer[0] != 0 or (lengths < 0).any():
        raise ValueError(
            f"pointer must hold {rows + 1} ascending positions from 0, got shape "
            f"{tuple(pointer.shape)}"
        )
    if index.shape != (int(pointer[-1]),):
        raise ValueError(
            f"index must have shape ({int(pointer[-1])},), the pointer's last entry, got "
            f"{tuple(index.shape)}"
        )
    if index.numel() and (index.min() < 0 or index.max() >= columns):
        raise ValueError(f"index must be in [0, {columns}), got {index.min()} to {index.max()}")
    mask = torch.zeros(rows, columns, dtype=torch.bool, device=index.device)
    row = torch.repeat_interleave(torch.arange(rows, device=index.device), lengths)
    mask[row, index.long()] = True
    return mask.view(sizes)


def mask_from_sparse(matrix: Tensor) -> Tensor:
    """The mask of what a torch sparse matrix stores; see :meth:`SparsityPattern.from_sparse`."""
    if not isinstance(matrix, Tensor):
        raise TypeError(f"matrix must be a torch sparse tensor, got {type(matrix).__name__}")
    if matrix.layout is torch.strided:
        raise TypeError(
            "matrix must have a sparse layout, got a dense tensor: use its mask, as in "
            "SparsityPattern(matrix != 0)"
        )
    if matrix.layout is torch.sparse_coo:
        matrix = matrix.coalesce()
        indices = matrix.indices()
        ones = torch.ones(indices.shape[1], dtype=torch.bool, device=matrix.device)
        return torch.sparse_coo_tensor(indices, ones, matrix.shape).to_dense()
    values = torch.ones_like(matrix.values())
    by_row = matrix.layout in (torch.sparse_csr, torch.sparse_bsr)
    pointer = matrix.crow_indices() if by_row else matrix.ccol_indices()
    index = matrix.col_indices() if by_row else matrix.row_indices()
    stored = torch.sparse_compressed_tensor(
        pointer, index, values, matrix.shape, layout=matrix.layout
    )
    return stored.to_dense() != 0


def mask_from_pruned(module: nn.Module, name: str) -> Tensor:
    """The mask that torch has pruned a parameter with; see :meth:`SparsityPattern.from_pruned`."""
    mask = getattr(module, f"{name}_mask", None)
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"module of type {type(module).__name__} has no {name}_mask: torch.nn.utils.prune has "
            f"not pruned its {name}"
        )
    return mask != 0


def to_sparse(
    pattern: SparsityPattern,
    values: Tensor,
    layout: torch.layout,
    blocksize: tuple[int, int] | None,
) -> Tensor:
    """A torch sparse matrix; see :meth:`SparsityPattern.to_sparse`. The values are checked."""
    pointer, index = pattern.to_csr()
    shape = (pattern.rows, pattern.columns)
    if layout is torch.sparse_csr:
        return torch.sparse_csr_tensor(pointer, index, values, shape)
    if layout is torch.sparse_coo:
        rows = torch.arange(pattern.rows, device=pattern.device)
        row = torch.repeat_interleave(rows, pointer.diff())
        return torch.sparse_coo_tensor(
            torch.stack([row, index.long()]), values, shape, is_coalesced=True
        )
    if layout is torch.sparse_bsr:
        fits = isinstance(blocksize, tuple | list) and len(blocksize) == 2
        if not fits or not all(
            isinstance(side, int) and side > 0 and size % side == 0
            for side, size in zip(blocksize or (), shape, strict=True)
        ):
            raise ValueError(
                "blocksize must be two whole numbers that divide the rows and columns "
                f"{shape} for layout torch.sparse_bsr, got {blocksize!r}"
            )
        assert blocksize is not None
        return pattern.scatter(values).view(shape).to_sparse_bsr(blocksize)
    raise ValueError(f"layout must be sparse_csr, sparse_coo or sparse_bsr, got {layout!r}")
