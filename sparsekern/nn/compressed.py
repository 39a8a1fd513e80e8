"""Linear layers for inference that hold their kept weights alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.masked import SparsityPattern
from ..ops.masked.compressed import CompressedWeight
from ..ops.masked.linear import autocasts
from .layers import MaskedLinear

_PARTS = ("pointer", "index", "values")


def pattern_in_order(pointer: Tensor, index: Tensor, shape: tuple[int, int]) -> SparsityPattern:
    """The pattern of a state's row pointer and column index, which its values go with one by one.

    Raises:
        TypeError: for something else than integer tensors.
        ValueError: if they do not fit together, or the columns of a row do not ascend.
    """
    pattern = SparsityPattern.from_csr(pointer, index, shape)
    if not torch.equal(pattern.to_csr()[1], index.to(torch.int32)):
        raise ValueError("index must ascend within each row")
    return pattern


class CompressedLinear(nn.Module):
    """A linear layer ``x Wᵀ + b`` of which only the kept weights are stored, for inference.

    Its weight and bias are constants; gradients go through to the input. In training mode a call
    that autograd records is refused: :func:`sparsekern.nn.to_dense` makes a layer that can be
    trained.

    The state_dict has the kept values row by row (``values``), their columns (``index``, int32),
    where each row begins (``pointer``, int32), and ``bias``. Another state of the same shape may
    keep other weights.

    Args:
        weight: ``(out_features, in_features)``.
        mask: bool of its shape, True where a weight is kept, or the pattern of that.
        bias: ``(out_features,)`` of the dtype and device of weight, or None. It is copied.
        keep_dense: keeps the dense weight as well once a large batch has asked for it; see
            :class:`~sparsekern.ops.masked.compressed.CompressedWeight`.
    """

    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | SparsityPattern,
        bias: Tensor | None = None,
        *,
        keep_dense: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.keep_dense = keep_dense
        self.compressed = CompressedWeight(weight, mask, keep_dense=keep_dense)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @classmethod
    def from_linear(cls, layer: MaskedLinear, *, keep_dense: bool = False) -> CompressedLinear:
        """The compressed form of a masked layer, whose values it copies.

        Raises:
            ValueError: if the layer is on the meta device, or its values are.
        """
        if layer.weight.is_meta:
            raise ValueError("a layer on the meta device has no weights to compress")
        made = cls(layer.weight, layer.pattern, layer.bias, keep_dense=keep_dense)
        return made.train(layer.training)

    @property
    def sparsity(self) -> float:
        """The share of weights that are not kept."""
        total = self.in_features * self.out_features
        return 1 - self.compressed.nnz / total if total else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the layer takes, the bias included."""
        return self.compressed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            RuntimeError: in training mode with gradients switched on.
        """
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(
                "CompressedLinear is for inference, its weight has no gradient: call "
                "model.eval(), or sparsekern.nn.to_dense(model) to train it on"
            )
        if not autocasts(input):
            return self.compressed.linear(input, self.bias)
        out = self.compressed.linear(input.to(self.compressed.dtype), self.bias)
        return out.to(torch.get_autocast_dtype(input.device.type))

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` with zeros where nothing is kept, for training or anything else."""
        weight = self.compressed.to_dense()
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, how sparse it is, and how large."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, sparsity={self.sparsity:.4f}, nbytes={self.nbytes}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> CompressedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        own = self.compressed
        moved = fn(torch.empty(0, dtype=own.dtype, device=own.device))
        if moved.is_meta:
            raise RuntimeError("a CompressedLinear has no form without values (device meta)")
        if (moved.dtype, moved.device) != (own.dtype, own.device):
            pointer, index, values = own.to_csr()
            self._take(pointer.to(moved.device), index.to(moved.device), fn(values))
        return self

    def _take(self, pointer: Tensor, index: Tensor, values: Tensor) -> None:
        pattern = pattern_in_order(pointer, index, (self.out_features, self.in_features))
        weight = pattern.scatter(values)
        self.compressed = CompressedWeight(weight, pattern, keep_dense=self.keep_dense)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in zip(_PARTS, self.compressed.to_csr(), strict=True):
            destination[prefix + name] = part

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = [prefix + name for name in _PARTS]
        rest = {name: value for name, value in state_dict.items() if name not in names}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing = [name for name in names if name not in state_dict]
        if missing:
            missing_keys += missing
            return
        own = self.compressed
        pointer, index, values = (state_dict[name].to(own.device) for name in names)
        try:
            self._take(pointer, index, values.to(own.dtype))
        except (TypeError, ValueError) as error:
            error_msgs.append(f"the kept weights of {prefix or 'the layer'} do not fit: {error}")
