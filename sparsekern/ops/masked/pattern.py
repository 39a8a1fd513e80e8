"""Which weights of a matrix are kept: a mask, and the orders that compiled products read it in."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import native
from ...dispatch import missing_reason, runs_cuda_kernels
from .. import checks
from . import compressed as compression
from . import interchange
from .compressed import CompressedWeight
from .core import CoreTuple, core_pattern
from .device_pattern import DeviceOrders

_INT32_MAX = 2**31 - 1


class Structure(NamedTuple):
    """What was found in a pattern beside its entries.

    Attributes:
        strip: kept entries in each 64 columns of a row, where all rows have as many (N:M masks);
            else 0.
        rows: kept entries in fours of rows that keep the same columns (blocks).
        columns: kept entries in fours of columns that keep the same rows.
    """

    strip: int = 0
    rows: int = 0
    columns: int = 0


class Prepared(NamedTuple):
    """What a product on the CPU takes of a pattern, looked up once for each mask.

    Attributes:
        tensors: :attr:`SparsityPattern.tensors`.
        core: the same as the compiled core is told of them.
        kept: entries, and what :class:`Structure` has.
    """

    tensors: list[Tensor]
    core: CoreTuple
    kept: tuple[int, int, int, int]


class SparsityPattern:
    """Which entries of a weight are kept, prepared once for products that skip the others.

    On the CPU it holds the kept positions in row order and in column order (32-bit, 12 bytes per
    kept entry together), built in one reading pass over the mask; on a GPU with CUDA kernels the
    same, built there in one pass, with an eighth of room to spare; elsewhere only the mask, for
    which plain PyTorch needs no more. On the CPU blocks and N:M groups among the kept entries are
    noticed meanwhile, and products make use of them. Pickling and deep copies carry the mask and
    rebuild the rest.

    Args:
        mask: bool, True where an entry is kept, of shape ``(rows, ...)``: all but the first
            dimension are flattened to columns. It is copied: later changes of it go through
            :meth:`update_`.

    Raises:
        TypeError: if mask is not a bool tensor.
        ValueError: if it has no dimension, or 2^31 rows, columns or kept entries or more.
    """

    # The compressed form of the last weight that was compressed.
    remembered: compression.Kept | None = None

    def __init__(self, mask: Tensor) -> None:
        _check_mask(mask)
        own = torch.empty(mask.shape, dtype=torch.bool, device=mask.device)
        self._adopt(own, mask.detach())

    def _adopt(self, own: Tensor, mask: Tensor) -> None:
        """Builds from a mask in the memory of its own one, which may be the same tensor."""
        self._mask = own
        self._buffers: list[Tensor] = []
        self._tensors: list[Tensor] = []
        self._nnz = 0
        self._structure = Structure()
        self._device: DeviceOrders | None = None
        self._prepared: Prepared | None = None
        self._build(mask)

    @property
    def mask(self) -> Tensor:
        """The mask itself, bool; not to be changed other than by :meth:`update_`."""
        return self._mask

    @property
    def shape(self) -> torch.Size:
        """Of the mask."""
        return self._mask.shape

    @property
    def device(self) -> torch.device:
        """Where the mask is."""
        return self._mask.device

    @property
    def nnz(self) -> int:
        """How many entries are kept; on a GPU this waits for the device after :meth:`update_`."""
        if self._device is not None:
            self._nnz = self._device.count(self._mask)
            self._tensors = self._device.tensors
        return self._nnz

    @property
    def expected_nnz(self) -> int:
        """About how many entries are kept, by which algorithms are chosen.

        On the CPU the number itself. On a GPU a rounded one that is known without waiting: after
        :meth:`update_` that of an update before.
        """
        return self._nnz if self._device is None else self._device.expected

    @property
    def sparsity(self) -> float:
        """The share of entries that are not kept; 0 for a mask without entries."""
        total = self._mask.numel()
        return 1 - self.nnz / total if total else 0.0

    @property
    def rows(self) -> int:
        """The first dimension of the mask."""
        return self._mask.shape[0]

    @property
    def columns(self) -> int:
        """All other dimensions of the mask, flattened."""
        return self._mask.shape[1:].numel()

    @property
    def structure(self) -> Structure:
        """Blocks and N:M groups among the kept entries, looked for on the CPU."""
        return self._structure

    @property
    def prepared_for(self) -> str:
        """Whose products can run on it: ``"cpu"``, ``"cuda"``, or neither, an empty string."""
        if self._device is not None:
            return "cuda"
        return "cpu" if len(self._tensors) > 1 else ""

    @property
    def prepared(self) -> Prepared:
        """What products on the CPU take, where :attr:`prepared_for` is ``"cpu"``."""
        assert self._prepared is not None
        return self._prepared

    @property
    def tensors(self) -> list[Tensor]:
        """What operators are given of it: the mask; then, if prepared, the two orders.

        ``[mask, row pointer, row order's columns, column pointer, column order's rows, the row
        order's position of each entry of the column order]``; on the CPU also ``[the structure
        found]``; for CUDA kernels ``[row schedule, column schedule]``, and those of one element per
        kept entry have room to spare.
        """
        return self._tensors

    @property
    def trimmed_tensors(self) -> list[Tensor]:
        """The same with nothing to spare; on a GPU this waits for the device after an update."""
        return self._tensors if self._device is None else self._device.trimmed(self._mask)

    def update_(self, mask: Tensor) -> SparsityPattern:
        """Takes another mask of the same shape and device, in the memory of the one before.

        On a GPU nothing waits for the device, and a CUDA graph can hold it. Masks may keep more
        than there is room for: products then walk over the mask, which is slower, until the next
        update that knows of it, or a reading of :attr:`nnz`, makes room.

        Raises:
            TypeError: if mask is not a bool tensor.
            ValueError: if its shape or device differs.
        """
        _check_mask(mask)
        if mask.shape != self._mask.shape:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)} and the pattern {tuple(self._mask.shape)}: "
                "expected the same"
            )
        self._check_device(mask, "mask")
        self.remembered = None
        self._build(mask.detach())
        return self

    def to(self, device: torch.device | str | int) -> SparsityPattern:
        """The same pattern on a device: itself if it is there already."""
        moved = self._mask.to(device)
        return self if moved is self._mask else SparsityPattern(moved)

    def gather(self, weight: Tensor) -> Tensor:
        """The kept entries of a dense weight of the mask's shape, in row order: ``(nnz,)``.

        Differentiable. The dtype is the weight's.

        Raises:
            TypeError: if weight is not a dense tensor.
            ValueError: if its shape or device differs.
        """
        checks.dense_tensor(weight, "weight")
        if weight.shape != self._mask.shape:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)} and the pattern "
                f"{tuple(self._mask.shape)}: expected the same"
            )
        self._check_device(weight, "weight")
        return weight.masked_select(self._mask)

    def scatter(self, values: Tensor) -> Tensor:
        """The dense weight with these kept entries, in row order, and zeros elsewhere.

        Differentiable; ``values`` has shape ``(nnz,)``.

        Raises:
            TypeError: if values is not a dense tensor.
            ValueError: if its shape or device differs.
        """
        self._check_values(values)
        return values.new_zeros(self._mask.shape).masked_scatter(self._mask, values)

    def compress(self, weight: Tensor, *, keep_dense: bool = True) -> CompressedWeight:
        """The kept entries of a weight alone, in the form that inference is fastest with.

        Worth it where products with small batches take as long as their bytes do: on the CPU, and
        on a GPU with the CUDA kernels. :func:`sparsekern.masked_linear` takes it from then on
        wherever it gets this weight with this pattern and no gradient is wanted, until either
        changes; a change by way of ``.data``, or of tensors made in inference mode, is not noticed.
        Waits for the device once.

        Args:
            weight: ``(rows, columns)``, on the pattern's device. What lies under the mask has no
                influence.
            keep_dense: keeps the dense masked weight too once a large batch has asked for it, so
                that large batches take no longer than with a dense layer. Otherwise it is made anew
                for each of them.

        Raises:
            TypeError: if weight is not a floating-point tensor.
            ValueError: if its shape or device differs, or it is no matrix.
        """
        checks.floating_tensor(weight, "weight")
        if weight.dim() != 2 or weight.shape != self._mask.shape:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)} and the pattern "
                f"{tuple(self._mask.shape)}: expected the same, of a matrix"
            )
        self._check_device(weight, "weight")
        result = CompressedWeight(weight, self, keep_dense=keep_dense)
        self.remembered = compression.kept(result, weight, self._mask)
        return result

    def to_csr(self) -> tuple[Tensor, Tensor]:
        """Row pointer ``(rows + 1,)`` and column index ``(nnz,)``, int32, columns ascending."""
        if self.prepared_for:
            return self._tensors[1].clone(), self.trimmed_tensors[2].clone()
        flat = self._mask.flatten(1)
        pointer = torch.zeros(self.rows + 1, dtype=torch.int32, device=self.device)
        pointer[1:] = flat.sum(dim=1).cumsum(dim=0)
        return pointer, flat.nonzero()[:, 1].to(torch.int32)

    @classmethod
    def from_csr(
        cls, pointer: Tensor, index: Tensor, shape: tuple[int, ...] | torch.Size
    ) -> SparsityPattern:
        """The pattern of a row pointer and a column index, in any order within a row.

        Args:
            pointer: ``(rows + 1,)`` integers.
            index: ``(nnz,)`` integers, each at least 0 and less than the number of columns.
            shape: of the mask; all but its first dimension are the columns.

        Raises:
            TypeError: for something else than integer tensors.
            ValueError: if they do not fit together.
        """
        return cls(interchange.mask_from_csr(pointer, index, shape))

    @classmethod
    def from_sparse(cls, matrix: Tensor) -> SparsityPattern:
        """The pattern of the entries that a torch sparse matrix stores, in any layout.

        Stored zeros count as kept; a block layout (BSR, BSC) keeps its blocks whole.

        Raises:
            TypeError: for something else, a dense tensor included.
        """
        return cls(interchange.mask_from_sparse(matrix))

    def to_sparse(
        self,
        values: Tensor,
        layout: torch.layout = torch.sparse_csr,
        *,
        blocksize: tuple[int, int] | None = None,
    ) -> Tensor:
        """A torch sparse matrix of this pattern.

        Args:
            values: ``(nnz,)`` in row order, as from :meth:`gather`.
            layout: ``torch.sparse_csr`` (with int32 indices), ``torch.sparse_coo`` or
                ``torch.sparse_bsr`` (blocks that hold any kept entry, zeros in the rest of them).
            blocksize: of BSR.

        Returns:
            ``(rows, columns)``.

        Raises:
            TypeError: if values is not a dense tensor.
            ValueError: for another shape, device or layout, or blocks that do not fit.
        """
        self._check_values(values)
        return interchange.to_sparse(self, values, layout, blocksize)

    @classmethod
    def from_pruned(cls, module: torch.nn.Module, name: str = "weight") -> SparsityPattern:
        """The mask that ``torch.nn.utils.prune`` has put on a parameter of a module.

        Raises:
            ValueError: if it has put none there.
        """
        return cls(interchange.mask_from_pruned(module, name))

    def prune(self, module: torch.nn.Module, name: str = "weight") -> torch.nn.Module:
        """Puts the mask on a parameter of a module, in the manner of ``torch.nn.utils.prune``.

        Raises:
            ValueError: if the module has no such parameter, or one of another shape.
        """
        from torch.nn.utils import prune

        parameter = getattr(module, name, None)
        if not isinstance(parameter, Tensor) or parameter.shape != self.shape:
            found = tuple(parameter.shape) if isinstance(parameter, Tensor) else "none"
            raise ValueError(
                f"module must have a parameter {name} of shape {tuple(self.shape)}, got {found}"
            )
        prune.custom_from_mask(module, name, self._mask.to(parameter.dtype))
        return module

    def same(self, other: SparsityPattern) -> bool:
        """Whether the other pattern keeps the same entries."""
        return self.shape == other.shape and torch.equal(self._mask, other._mask)

    def __repr__(self) -> str:
        return (
            f"SparsityPattern(shape={tuple(self.shape)}, nnz={self.nnz}, "
            f"sparsity={self.sparsity:.4f}, device='{self.device}')"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"mask": self._mask}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._adopt(state["mask"], state["mask"])

    def __copy__(self) -> SparsityPattern:
        return SparsityPattern(self._mask)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparsityPattern:
        # By way of memo: a module's mask buffer and its pattern's mask stay one tensor.
        result = SparsityPattern.__new__(SparsityPattern)
        memo[id(self)] = result
        own = copy.deepcopy(self._mask, memo)
        result._adopt(own, own)
        return result

    def _check_device(self, x: Tensor, name: str) -> None:
        if x.device != self._mask.device:
            raise ValueError(
                f"{name} is on {x.device} and the pattern on {self._mask.device}: "
                "expected the same device"
            )

    def _check_values(self, values: Tensor) -> None:
        checks.dense_tensor(values, "values")
        nnz = self.nnz
        if values.shape != (nnz,):
            raise ValueError(
                f"values must have shape ({nnz},), one per kept entry, got {tuple(values.shape)}"
            )
        self._check_device(values, "values")

    def _build(self, mask: Tensor) -> None:
        rows, columns = self.rows, self.columns
        kernels = runs_cuda_kernels(self._mask.device)  # emulated ones run on the CPU
        on_cpu = not kernels and self._mask.device.type == "cpu" and not missing_reason("cpu")
        # The core copies while it counts, where it can read the mask as it lies in memory.
        copies = on_cpu and _is_apart(mask, self._mask)
        if not copies and mask is not self._mask:
            self._mask.copy_(mask)
        if kernels:
            if self._device is None:
                self._device = DeviceOrders(self._mask)
            else:
                self._device.update(self._mask)
            self._tensors = self._device.tensors
            return
        if not on_cpu:
            self._nnz = int(self._mask.sum())
            self._tensors = [self._mask]
            return
        if max(rows, columns) > _INT32_MAX:
            raise ValueError(f"mask of shape {tuple(self.shape)} has 2^31 rows or columns or more")
        core = native.cpu()
        threads = _threads(rows, columns)
        row_pointer, column_pointer = self._buffer(1, rows + 1), self._buffer(3, columns + 1)
        scratch = self._buffer(0, core.scratch_size(rows, columns, threads))
        own = self._mask.data_ptr()
        masks = (mask.data_ptr(), own) if copies else (own, 0)
        written = [tensor.data_ptr() for tensor in (row_pointer, column_pointer, scratch)]
        self._nnz = core.count_mask(*masks, rows, columns, *written, threads)
        if copies and not self._mask.is_inference():  # autograd is to see the write
            torch.autograd.graph.increment_version(self._mask)
        if self._nnz < 0:
            raise ValueError(f"mask of shape {tuple(self.shape)} keeps 2^31 entries or more")
        nnz = self._nnz
        self._tensors = [
            self._mask,
            row_pointer,
            self._buffer(2, nnz),
            column_pointer,
            self._buffer(4, nnz),
            self._buffer(5, nnz),
        ]
        core.fill_pattern(core_pattern(self._tensors), scratch.data_ptr(), threads)
        structure = self._buffer(6, core.structure_size(rows, columns))
        core.find_structure(core_pattern(self._tensors), structure.data_ptr(), threads)
        self._tensors.append(structure)
        self._structure = Structure(*structure[:3].tolist())
        kept = (nnz, *self._structure)
        self._prepared = Prepared(self._tensors, core_pattern(self._tensors), kept)

    def _buffer(self, slot: int, size: int) -> Tensor:
        """Memory that is kept from one build to the next, as long as it is large enough."""
        while len(self._buffers) <= slot:
            self._buffers.append(torch.empty(0, dtype=torch.int32, device="cpu"))
        if self._buffers[slot].numel() < size:
            self._buffers[slot] = torch.empty(size, dtype=torch.int32, device="cpu")
        return self._buffers[slot][:size]


def _threads(rows: int, columns: int) -> int:
    # A second thread for a mask of less than a quarter megabyte costs more than it saves. The core
    # takes 64 rows at a time.
    return 1 if rows * columns < 1 << 18 else min(torch.get_num_threads(), -(-rows // 64))


def _is_apart(mask: Tensor, own: Tensor) -> bool:
    """Whether a mask is plain memory without gaps, other than that of a pattern's own mask."""
    return (
        type(mask) is Tensor
        and mask.is_contiguous()
        and mask.untyped_storage().data_ptr() != own.untyped_storage().data_ptr()
    )


def _check_mask(mask: object) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {mask.dtype}: mask != 0 makes one")
    if mask.layout is not torch.strided:
        raise TypeError(f"mask must be a dense (strided) tensor, got layout {mask.layout}")
    if mask.dim() == 0:
        raise ValueError("mask must have shape (rows, ...), got a scalar")
    if mask.is_meta:
        raise ValueError("mask is on meta, where it has no values: expected another device")
