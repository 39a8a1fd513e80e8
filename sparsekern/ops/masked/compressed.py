"""Masked weights stored by their kept entries alone, for inference: several forms, chosen once.

A compressed weight answers each batch in the form that is fastest for it: bitmask-compressed on the
CUDA kernels for small batches, torch's semi-structured matrices for 2:4 masks, blocks where whole
blocks are empty, and the dense masked weight for all else.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from .. import checks
from ..registry import needs_grad
from . import bitmask

if TYPE_CHECKING:
    from .pattern import SparsityPattern

_GROUP = 4  # of a 2:4 pattern: two of four adjacent columns are kept at most
_SEMI_DTYPES = (torch.bfloat16, torch.float16)
# Of a weight for either of torch's back ends, CUTLASS (32, 64) and cuSPARSELt (16, 16).
_SEMI_MULTIPLES = (32, 64)
_SEMI_CAPABILITY = (8, 0)
# Side of a block, and the largest share of blocks that hold anything at which they are multiplied
# one by one. Smaller blocks fill the tensor cores less. Not measured on hardware.
_BLOCKS = {64: 0.5, 32: 0.35, 16: 0.2}

# The model that chooses between bitmask and dense. Counted in the instructions of the kernels'
# inner loops, for 32 weights each; bytes are turned into instructions at the rate of an H200 (4.3
# TB/s, 132 multiprocessors of four at 1.8 GHz), where memory is fastest against instructions:
# elsewhere compressed weights do better than it says. Not measured on hardware.
_LARGEST_BATCH = 16
_GAIN = 0.8  # of the dense cost: what the model does not know is not to make a product slower
_BYTES_PER_INSTRUCTION = 4.5
_UNPACKING = 4.5  # for a left operand of the tensor cores
_SCAN = 0.6  # where a lane's values begin
_WALK, _WALK_PER_ROW = 8.0, 2.5  # a kept weight of the slowest lane; and for each row of x
_FEW = 4  # rows of x that one launch multiplies without tensor cores


class Sizes(NamedTuple):
    """What the choice of a form depends on besides the batch."""

    rows: int
    columns: int
    nnz: int
    dtype: torch.dtype
    forms: frozenset[str]


def algorithm(batch: int, sizes: Sizes) -> str:
    """The form that multiplies a batch: a pure function.

    Args:
        batch: rows of x.
        sizes: with the forms that there are of the weight.

    Returns:
        ``"semi_structured"``, ``"few"`` or ``"panels"`` (bitmask-compressed, without and with
        tensor cores), ``"blocks"``, or ``"dense"``.
    """
    if "semi_structured" in sizes.forms:
        return "semi_structured"
    if "bitmask" in sizes.forms and 1 <= batch <= _LARGEST_BATCH:
        few, panels = instructions("few", batch, sizes), instructions("panels", batch, sizes)
        if min(few, panels) < _GAIN * instructions("dense", batch, sizes):
            return "few" if few < panels else "panels"
    return "blocks" if "blocks" in sizes.forms else "dense"


def instructions(name: str, batch: int, sizes: Sizes) -> float:
    """The modelled cost of 32 weights in instructions of a warp; see :func:`algorithm`."""
    density = sizes.nnz / max(1, sizes.rows * sizes.columns)
    if name == "dense":
        return 32 * sizes.dtype.itemsize / _BYTES_PER_INSTRUCTION
    read = (4 + 32 * density * sizes.dtype.itemsize) / _BYTES_PER_INSTRUCTION
    if name == "panels":
        return math.inf if sizes.dtype == torch.float32 else max(read, _UNPACKING + _SCAN)
    # A warp walks as long as its fullest lane: 2.5 standard deviations above the mean.
    longest = 32 * density + 2.5 * math.sqrt(32 * density * (1 - density))
    launches = math.ceil(batch / _FEW)
    walk = longest * (_WALK + _WALK_PER_ROW * min(batch, _FEW)) / 32
    return launches * max(read, walk + _SCAN)


class CompressedWeight:
    """A masked weight of which the kept entries alone are stored, for inference.

    Made by :meth:`sparsekern.SparsityPattern.compress`. Its products are not differentiable in the
    weight: that is a constant from then on.

    Args:
        weight: ``(rows, columns)``; float32, float64, bfloat16 or float16. What lies under the
            mask has no influence.
        mask: bool ``(rows, columns)``, True where a weight is kept.
        keep_dense: keeps the dense masked weight as well once a large batch has asked for it, so
            that large batches take as long as with a dense layer. Otherwise it is made anew for
            each of them, and the memory stays at the compressed size.
    """

    def __init__(self, weight: Tensor, mask: Tensor, *, keep_dense: bool = True) -> None:
        self._keep_dense = keep_dense
        self._kernels = has_kernels(weight.device)
        self._dense: Tensor | None = None
        self._blocks: Tensor | None = None
        self._semi_structured: Tensor | None = None
        self._packed: bitmask.Bitmask | None = None
        weight, mask = weight.detach(), mask.contiguous()
        rows, columns = weight.shape
        nnz = int(mask.sum())
        self._dtype, self._device = weight.dtype, weight.device
        if is_semi_structured(mask) and nnz > 0:
            self._semi_structured = semi_structured(torch.where(mask, weight, 0))
        side = 0
        if self._semi_structured is None:
            side = block_side(mask)
            if weight.dtype in bitmask.DTYPES:
                self._packed = bitmask.pack(mask, weight, nnz, self._kernels)
            else:
                self._dense = torch.where(mask, weight, 0)
        if side:
            self._blocks = _blocks(torch.where(mask, weight, 0), side)
        forms = {
            "semi_structured": self._semi_structured is not None,
            "bitmask": self._packed is not None and self._kernels,
            "blocks": self._blocks is not None,
        }
        self._sizes = Sizes(
            rows, columns, nnz, weight.dtype, frozenset(name for name in forms if forms[name])
        )

    @property
    def shape(self) -> torch.Size:
        """``(rows, columns)``."""
        return torch.Size((self._sizes.rows, self._sizes.columns))

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
        return self._sizes.nnz

    @property
    def forms(self) -> frozenset[str]:
        """What there is of it: ``"semi_structured"``, ``"bitmask"``, ``"blocks"``.

        The dense weight can always be made. ``"bitmask"`` is named where the kernels can multiply
        with it; elsewhere it is merely how the weight is stored.
        """
        return self._sizes.forms

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes now, the dense weight included where that is kept."""
        packed = 0 if self._packed is None else self._packed.nbytes
        dense = 0 if self._dense is None else self._dense.nbytes
        semi = blocks = 0
        if self._semi_structured is not None:  # half of the values, and 2 bits for each
            semi = self.shape.numel() * self._dtype.itemsize * 9 // 16
        if self._blocks is not None:
            parts = (self._blocks.values(), self._blocks.crow_indices(), self._blocks.col_indices())
            blocks = sum(part.nbytes for part in parts)
        return packed + dense + semi + blocks

    def algorithm(self, batch: int) -> str:
        """What multiplies a batch of so many rows; see :func:`algorithm`."""
        return algorithm(batch, self._sizes)

    def to_dense(self) -> Tensor:
        """The dense weight with zeros where nothing is kept: ``(rows, columns)``."""
        return self._dense_weight().clone() if self._dense is not None else self._dense_weight()

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
        name = algorithm(x.shape[:-1].numel(), self._sizes)
        if name == "dense" or needs_grad([x] if bias is None else [x, bias]):
            return F.linear(x, self._dense_weight(), bias)
        if name == "semi_structured":
            assert self._semi_structured is not None
            return F.linear(x, self._semi_structured, bias)
        flat = x.reshape(-1, x.shape[-1])
        if name == "blocks":
            assert self._blocks is not None
            out = F.linear(flat, self._blocks, bias)
        else:
            assert self._packed is not None
            out = bitmask.linear(flat, self._packed, bias, name == "panels")
        return out.view(*x.shape[:-1], self._sizes.rows)

    def _dense_weight(self) -> Tensor:
        if self._dense is not None:
            return self._dense
        if self._packed is not None:
            dense = bitmask.expand(self._packed, self._kernels)
        else:
            assert self._semi_structured is not None
            dense = self._semi_structured.to_dense()
        if self._keep_dense and not torch.compiler.is_compiling():
            self._dense = dense
        return dense

    def _check(self, x: Tensor, bias: Tensor | None) -> None:
        checks.floating_tensor(x, "x")
        if x.dim() == 0 or x.shape[-1] != self._sizes.columns:
            raise ValueError(
                f"x must have shape (..., {self._sizes.columns}) for a weight of shape "
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
        if bias is not None and bias.shape != (self._sizes.rows,):
            raise ValueError(
                f"bias must have shape ({self._sizes.rows},), one per row of the weight, got "
                f"{tuple(bias.shape)}"
            )

    def __repr__(self) -> str:
        return (
            f"CompressedWeight(shape={tuple(self.shape)}, nnz={self.nnz}, dtype={self._dtype}, "
            f"nbytes={self.nbytes}, forms={sorted(self.forms)})"
        )


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


def block_side(mask: Tensor) -> int:
    """The side of the blocks that a mask is worth being multiplied by, or 0 for none."""
    for side, most in _BLOCKS.items():
        rows, columns = mask.shape
        if rows % side or columns % side or mask.numel() == 0:
            continue
        blocks = mask.view(rows // side, side, columns // side, side).any(dim=3).any(dim=1)
        if 0 < int(blocks.sum()) <= most * blocks.numel():
            return side
    return 0


def _blocks(dense: Tensor, side: int) -> Tensor | None:
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

    None where gradients are wanted, the plain-PyTorch reference is asked for, or the weight or the
    mask has changed since.
    """
    own = pattern.remembered
    if own is None or torch.compiler.is_compiling() or own.weight() is not weight:
        return None
    if own.mark != _mark(weight, pattern.mask) or x.dtype != own.compressed.dtype:
        return None
    if dispatch.requested() == "reference" or needs_grad([x, weight]):
        return None
    return own.compressed


def _mark(weight: Tensor, mask: Tensor) -> tuple[Any, ...]:
    """What changes with a weight or a mask, other than by way of ``.data`` or in inference mode."""
    return tuple(
        (x.data_ptr(), x.shape, x.stride(), x.dtype, 0 if x.is_inference() else x._version)
        for x in (weight, mask)
    )
