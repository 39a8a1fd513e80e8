"""Masked weights stored by their kept entries alone, for inference: several forms, chosen once.

A compressed weight answers each batch in the form that is fastest for it. On the CPU: kept values
row by row, by the compiled core. On a GPU, by :mod:`.cuda_choice`: bitmask-compressed on the CUDA
kernels for small batches, torch's semi-structured matrices for 2:4 masks, blocks where whole blocks
are empty. The dense masked weight for all else.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from .. import checks
from ..registry import back_end, needs_grad
from . import bitmask, choice, cuda_choice, packed
from .cuda_rates import DeviceRates

if TYPE_CHECKING:
    from .pattern import SparsityPattern

_GROUP = 4  # of a 2:4 pattern: two of four adjacent columns are kept at most
_SEMI_DTYPES = (torch.bfloat16, torch.float16)
# Of a weight for either of torch's back ends, CUTLASS (32, 64) and cuSPARSELt (16, 16).
_SEMI_MULTIPLES = (32, 64)
_SEMI_CAPABILITY = (8, 0)
_BLOCK_SIDES = (64, 32, 16)


class CompressedWeight:
    """A masked weight of which the kept entries alone are stored, for inference.

    Made by :meth:`sparsekern.SparsityPattern.compress`. Its products are not differentiable in the
    weight: that is a constant from then on.

    Args:
        weight: ``(rows, columns)``; float32, float64, bfloat16 or float16. What lies under the
            mask has no influence.
        mask: bool ``(rows, columns)``, True where a weight is kept, or the pattern of that.
        keep_dense: keeps the dense masked weight as well once a large batch has asked for it, so
            that large batches take as long as with a dense layer. Otherwise it is made anew for
            each of them, and the memory stays at the compressed size.
    """

    def __init__(
        self, weight: Tensor, mask: Tensor | SparsityPattern, *, keep_dense: bool = True
    ) -> None:
        self._keep_dense = keep_dense
        self._kernels = has_kernels(weight.device)
        self._dense: Tensor | None = None
        self._blocks: Tensor | None = None
        self._semi_structured: Tensor | None = None
        self._packed: bitmask.Bitmask | None = None
        self._by_rows: packed.Packed | None = None
        self._in_blocks = 0
        weight = weight.detach()
        rows, columns = weight.shape
        self._dtype, self._device = weight.dtype, weight.device
        if dispatch.select(weight.device) == "cpu":
            pattern = _as_pattern(mask)
            self._by_rows = packed.pack(weight, pattern)
            self._in_blocks = choice.in_blocks("forward", pattern.nnz, pattern.structure)
            self._forms = frozenset(("unstructured",))
            self._shape = torch.Size((rows, columns))
            self._nnz, self._block_side = pattern.nnz, 0
            return
        mask = (mask if isinstance(mask, Tensor) else mask.mask).contiguous()
        nnz = int(mask.sum())
        if is_semi_structured(mask) and nnz > 0:
            self._semi_structured = semi_structured(torch.where(mask, weight, 0))
        side = in_blocks = 0
        if self._semi_structured is None:
            side, in_blocks = block_side(mask, cuda_choice.machine(weight.device)[0])
            if weight.dtype in bitmask.DTYPES:
                self._packed = bitmask.pack(mask, weight, nnz, self._kernels)
            else:
                self._dense = torch.where(mask, weight, 0)
        if side:
            self._blocks = blocks(torch.where(mask, weight, 0), side)
        forms = {
            "semi_structured": self._semi_structured is not None,
            "bitmask": self._packed is not None and self._kernels,
            "blocks": self._blocks is not None,
        }
        self._forms = frozenset(name for name in forms if forms[name])
        self._shape = torch.Size((rows, columns))
        self._nnz, self._block_side, self._in_blocks = nnz, side, in_blocks

    @property
    def shape(self) -> torch.Size:
        """``(rows, columns)``."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight, and of what it is multiplied with."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._device

    @property
    def nnz(self) -> int:
        """How many entries are kept."""
        return self._nnz

    @property
    def forms(self) -> frozenset[str]:
        """What there is of it.

        On the CPU ``"unstructured"``, else ``"semi_structured"``, ``"bitmask"``, ``"blocks"``.
        The dense weight can always be made. ``"bitmask"`` is named where the kernels can multiply
        with it; elsewhere it is merely how the weight is stored.
        """
        return self._forms

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes now, the dense weight included where that is kept."""
        own = [form for form in (self._packed, self._by_rows) if form is not None]
        stored = sum(form.nbytes for form in own)
        dense = 0 if self._dense is None else self._dense.nbytes
        semi = blocks = 0
        if self._semi_structured is not None:  # half of the values, and 2 bits for each
            semi = self.shape.numel() * self._dtype.itemsize * 9 // 16
        if self._blocks is not None:
            parts = (self._blocks.values(), self._blocks.crow_indices(), self._blocks.col_indices())
            blocks = sum(part.nbytes for part in parts)
        return stored + dense + semi + blocks

    def algorithm(self, batch: int) -> str:
        """What multiplies a batch of so many rows, of all its forms and the dense weight.

        See :func:`.cuda_choice.algorithm` for the names, and on the CPU
        :func:`.choice.packed_algorithm`.
        """
        if self._by_rows is None:
            return self._fastest(batch, (*self._forms, "dense"))
        if not _core_runs(self._device):
            return "dense"
        rows, columns = self._shape
        return choice.packed_here(
            batch,
            rows,
            columns,
            self._nnz,
            self._dtype,
            self._in_blocks,
            self._dense is not None or self._keep_dense,
        )

    def to_dense(self) -> Tensor:
        """The dense weight with zeros where nothing is kept: ``(rows, columns)``."""
        return self._dense_weight().clone() if self._dense is not None else self._dense_weight()

    def to_csr(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row pointer and column index, int32, and values: the kept entries row by row, copies.

        In forms that do not tell a kept zero from what is not kept, zeros are left out.
        """
        if self._by_rows is not None:
            own = self._by_rows
            return own.pointer.clone(), own.indices.to(torch.int32, copy=True), own.values.clone()
        dense = self._dense_weight()
        kept = dense != 0
        row, column = kept.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=self._shape[0]).cumsum(0)
        return F.pad(counts, (1, 0)).to(torch.int32), column.to(torch.int32), dense[kept]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + b``, sums of 16-bit products in float32.

        Args:
            x: ``(..., columns)`` of the dtype and device of the weight.
            bias: ``(rows,)`` or None.

        Returns:
            ``(..., rows)``. Differentiable in x and bias, by way of the dense weight.

        Raises:
            TypeError: for another dtype.
            ValueError: for a shape or a device that does not fit.
        """
        self._check(x, bias)
        name = self.algorithm(x.shape[:-1].numel())
        if name == "dense" or needs_grad([x] if bias is None else [x, bias]):
            return F.linear(x, self._dense_weight(), bias)
        if name == "semi_structured":
            assert self._semi_structured is not None
            return F.linear(x, self._semi_structured, bias)
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if name == "unstructured":
            assert self._by_rows is not None
            out = packed.linear(flat, self._by_rows, bias)
        elif name == "blocks":
            assert self._blocks is not None
            out = F.linear(flat, self._blocks, bias)
        else:
            assert self._packed is not None
            out = bitmask.linear(flat, self._packed, bias, name == "panels")
        return out if x.dim() == 2 else out.view(*x.shape[:-1], self._shape[0])

    def _loses_to_pattern(self, batch: int) -> bool:
        """Whether a pattern of the same mask multiplies a batch faster, on the CUDA kernels."""
        forms = (*self._forms, "dense", "unstructured")
        return self._kernels and self._fastest(batch, forms) == "unstructured"

    def _fastest(self, batch: int, forms: Collection[str]) -> str:
        if self._device.type != "cuda" and not self._kernels:  # there is no model of its time
            return next(name for name in cuda_choice.TIMES if name in forms)
        rates, tf32 = cuda_choice.machine(self._device)
        rows, columns = self._shape
        sizes = cuda_choice.Sizes(
            batch,
            rows,
            columns,
            self._nnz,
            self._dtype,
            tf32,
            masked=self._keep_dense or self._dense is not None,
            block_side=self._block_side,
            in_blocks=self._in_blocks,
        )
        return cuda_choice.algorithm("forward", sizes, rates, forms)

    def _dense_weight(self) -> Tensor:
        if self._dense is not None:
            return self._dense
        if self._by_rows is not None:
            dense = packed.expand(self._by_rows, _core_runs(self._device))
        elif self._packed is not None:
            dense = bitmask.expand(self._packed, self._kernels)
        else:
            assert self._semi_structured is not None
            dense = self._semi_structured.to_dense()
        if self._keep_dense and not torch.compiler.is_compiling():
            self._dense = dense
        return dense

    def _check(self, x: Tensor, bias: Tensor | None) -> None:
        checks.floating_tensor(x, "x")
        if x.dim() == 0 or x.shape[-1] != self._shape[1]:
            raise ValueError(
                f"x must have shape (..., {self._shape[1]}) for a weight of shape "
                f"{tuple(self.shape)}, got {tuple(x.shape)}"
            )
        for tensor, name in ((x, "x"), (bias, "bias")):
            if tensor is None:
                continue
            if tensor.dtype != self._dtype:
                raise TypeError(
                    f"{name} has dtype {tensor.dtype} and the compressed weight {self._dtype}: "
                    "expected the same"
                )
            if tensor.device != self._device:
                raise ValueError(
                    f"{name} is on {tensor.device} and the compressed weight on {self._device}: "
                    "expected one device"
                )
        if bias is not None and bias.shape != (self._shape[0],):
            raise ValueError(
                f"bias must have shape ({self._shape[0]},), one per row of the weight, got "
                f"{tuple(bias.shape)}"
            )

    def __repr__(self) -> str:
        return (
            f"CompressedWeight(shape={tuple(self.shape)}, nnz={self.nnz}, dtype={self._dtype}, "
            f"nbytes={self.nbytes}, forms={sorted(self.forms)})"
        )


def _core_runs(device: torch.device) -> bool:
    """Whether the compiled core multiplies tensors of this device, here and now."""
    # Transforms and traces look into plain PyTorch only, as bitmask and the dense weight are.
    return back_end(device, bitmask, packed, triton=bitmask, cuda=bitmask) is packed


def _as_pattern(mask: Tensor | SparsityPattern) -> SparsityPattern:
    from .pattern import SparsityPattern  # which imports this module

    return mask if isinstance(mask, SparsityPattern) else SparsityPattern(mask)


def has_kernels(device: torch.device) -> bool:
    """Whether the CUDA kernels run on tensors of this device, here and now."""
    return dispatch.select(device, has_cuda=True) == "cuda"


def is_semi_structured(mask: Tensor) -> bool:
    """Whether a mask keeps two of each four adjacent columns at most, and about that many.

    A mask that keeps much less is 2:4 as well, and better off as a bitmask.
    """
    rows, columns = mask.shape
    if columns % _GROUP or mask.numel() == 0:
        return False
    counts = mask.view(rows, columns // _GROUP, _GROUP).sum(dim=2)
    return bool((counts <= 2).all()) and int(counts.sum()) > 0.4 * mask.numel()


def semi_structured(dense: Tensor) -> Tensor | None:
    """Torch's semi-structured form of a dense 2:4 weight, or None where it has no products."""
    rows, columns = dense.shape
    fits = (
        dense.device.type == "cuda"
        and torch.version.hip is None
        and dense.dtype in _SEMI_DTYPES
        and rows % _SEMI_MULTIPLES[0] == 0
        and columns % _SEMI_MULTIPLES[1] == 0
        and torch.cuda.get_device_capability(dense.device) >= _SEMI_CAPABILITY
    )
    if not fits:
        return None
    try:
        found: Tensor = torch.sparse.to_sparse_semi_structured(dense)
        # Which GPUs its kernels are built for shows with the first product.
        F.linear(dense.new_zeros(8, columns), found)
    except RuntimeError:
        return None
    return found


def block_side(mask: Tensor, rates: DeviceRates) -> tuple[int, int]:
    """The side of the blocks that a mask is worth being multiplied by, and the weights in them.

    Returns:
        64, 32 or 16 and a number of weights, kept or not; ``(0, 0)`` where the whole mask is
        multiplied as fast.
    """
    best, found = 1.0, (0, 0)
    for side in _BLOCK_SIDES:
        rows, columns = mask.shape
        if rows % side or columns % side or mask.numel() == 0:
            continue
        blocks = mask.view(rows // side, side, columns // side, side).any(dim=3).any(dim=1)
        count = int(blocks.sum())
        cost = count / (blocks.numel() * rates.blocks(side))  # over that of the dense weight
        if count > 0 and cost <= best:
            best, found = cost, (side, count * side**2)
    return found


def blocks(dense: Tensor, side: int) -> Tensor | None:
    """The blocks that hold anything, or None where torch does not multiply them."""
    found = dense.to_sparse_bsr((side, side))
    try:
        F.linear(dense.new_zeros(side, dense.shape[1]), found)
    except RuntimeError:  # as an operator that torch lacks for this dtype or device says
        return None
    return found


class Kept(NamedTuple):
    """A compressed weight that a pattern remembers, and what it was made of."""

    compressed: CompressedWeight
    weight: weakref.ref[Tensor]
    mark: tuple[Any, ...]


def kept(compressed: CompressedWeight, weight: Tensor, mask: Tensor) -> Kept:
    """What a pattern remembers of a weight that it has compressed."""
    return Kept(compressed, weakref.ref(weight), _mark(weight, mask))


def found(x: Tensor, weight: Tensor, pattern: SparsityPattern) -> CompressedWeight | None:
    """The compressed form that a pattern has of exactly this weight, where x can be multiplied.

    None where gradients are wanted, the plain-PyTorch reference is asked for, the weight or the
    mask has changed since, or the pattern is faster for so many rows.
    """
    own = pattern.remembered
    if own is None or torch.compiler.is_compiling() or own.weight() is not weight:
        return None
    if own.mark != _mark(weight, pattern.mask) or x.dtype != own.compressed.dtype:
        return None
    if dispatch.requested() == "reference" or needs_grad([x, weight]):
        return None
    return None if own.compressed._loses_to_pattern(x.shape[:-1].numel()) else own.compressed


def _mark(weight: Tensor, mask: Tensor) -> tuple[Any, ...]:
    """What changes with a weight or a mask, other than by way of ``.data`` or in inference mode."""
    return tuple(
        (x.data_ptr(), x.shape, x.stride(), x.dtype, 0 if x.is_inference() else x._version)
        for x in (weight, mask)
    )
