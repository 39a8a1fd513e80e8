"""Linear layers that are trained with a fixed mask, and hold their kept weights alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.masked import SparsityPattern, packed_linear
from .compressed import pattern_in_order
from .layers import MaskedLinear

_PARTS = ("pointer", "index")


class PackedLinear(nn.Module):
    """A linear layer ``x Wᵀ + b`` whose parameter is the kept weights, ``(nnz,)``, row by row.

    For masks that do not change. Gradients and an optimizer's state have that size too; any
    optimizer works. :meth:`to_masked` goes back to a layer whose mask can change, and
    ``sparsekern.nn.compress`` on to one for inference.

    An input whose batch is adjacent in memory (features-major: ``x.t().contiguous().t()``) gives an
    output that lies so too, without the transposes in between; a chain of such layers and
    element-wise functions stays features-major.

    The state_dict has the kept values (``values``), their columns (``index``, int32), where each
    row begins (``pointer``, int32), and ``bias``: that of a :class:`CompressedLinear`. Another
    state of the same shape may keep other weights; an optimizer's state does not follow where
    these are more or fewer. All ranks of a data-parallel model must hold the same mask.

    Args:
        weight: ``(out_features, in_features)``, whose kept entries are copied.
        mask: bool of its shape, True where a weight is kept, or the pattern of that.
        bias: ``(out_features,)`` of the dtype and device of weight, or None. A parameter stays the
            one it is, another tensor is copied.

    Raises:
        TypeError: if weight is no floating-point tensor, or mask no mask.
        ValueError: for shapes or devices that do not fit, or a weight on the meta device.
    """

    bias: nn.Parameter | None

    def __init__(
        self, weight: Tensor, mask: Tensor | SparsityPattern, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"weight must have shape (out_features, in_features), got {found}")
        if weight.is_meta:
            raise ValueError("weight is on meta, where it has no values: expected another device")
        self.pattern = SparsityPattern(mask.mask if isinstance(mask, SparsityPattern) else mask)
        self.out_features, self.in_features = weight.shape
        kept = self.pattern.gather(weight.detach())
        frozen = isinstance(weight, nn.Parameter) and not weight.requires_grad
        self.values = nn.Parameter(kept, requires_grad=not frozen)
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(
                f"bias must have shape ({self.out_features},), one per row of the weight, got "
                f"{tuple(bias.shape)}"
            )
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias.detach().clone())
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(
        cls, layer: nn.Linear, mask: Tensor | SparsityPattern | None = None
    ) -> PackedLinear:
        """The packed form of a linear layer, or of a masked one with its own mask.

        The kept values are copied to a new parameter; the bias stays the parameter it is.

        Raises:
            TypeError: for another kind of layer, or a mask that is no bool tensor.
            ValueError: without a mask, for one of another shape, a layer on the meta device, or a
                straight-through gradient (``weight_grad="dense"``), which has no packed form.
        """
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer must be a torch.nn.Linear, got {type(layer).__name__}")
        if isinstance(layer, MaskedLinear):
            if layer.weight_grad == "dense":
                raise ValueError(
                    'layer has weight_grad="dense": a packed one has no gradient where nothing '
                    "is kept"
                )
            mask = layer.pattern if mask is None else mask
        if mask is None:
            raise ValueError("mask must be given for a layer that has none")
        return cls(layer.weight, mask, layer.bias).train(layer.training)

    @property
    def sparsity(self) -> float:
        """The share of weights that are not kept."""
        return self.pattern.sparsity

    def to_dense(self) -> Tensor:
        """The weight, zeros where nothing is kept, ``(out_features, in_features)``.

        Differentiable in the values.
        """
        return self.pattern.scatter(self.values)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` of this weight and bias; the bias stays the parameter it is."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        return self._filled(linear)

    def to_masked(self) -> MaskedLinear:
        """A :class:`MaskedLinear` of this weight, mask and bias."""
        layer = MaskedLinear.from_linear(self.to_linear(), self.pattern)
        return layer.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return packed_linear(input, self.values, self.pattern, self.bias)

    def extra_repr(self) -> str:
        """Sizes, and how sparse it is."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, sparsity={self.sparsity:.4f}"
        )

    def _filled(self, linear: nn.Linear) -> nn.Linear:
        trained = self.values.requires_grad
        linear.weight = nn.Parameter(self.to_dense().detach(), requires_grad=trained)
        if self.bias is not None:
            linear.bias = self.bias
        return linear.train(self.training)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        if fn(torch.empty(0, dtype=self.values.dtype, device=self.values.device)).is_meta:
            raise RuntimeError("a PackedLinear has no form without values (device meta)")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.pattern = self.pattern.to(self.values.device)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in zip(_PARTS, self.pattern.to_csr(), strict=True):
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
        missing = [name for name in names if name not in state_dict]
        rest = {name: value for name, value in state_dict.items() if name not in names}
        if missing:
            missing_keys += missing
        else:
            try:
                self._take(*(state_dict[name].to(self.values.device) for name in names))
            except (TypeError, ValueError) as error:
                error_msgs.append(
                    f"the kept weights of {prefix or 'the layer'} do not fit: {error}"
                )
                return
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take(self, pointer: Tensor, index: Tensor) -> None:
        """Another pattern, and room for its values in the same parameter."""
        pattern = pattern_in_order(pointer, index, (self.out_features, self.in_features))
        if pattern.nnz != self.pattern.nnz:
            self.values.grad = None
            self.values.data = self.values.data.new_empty(pattern.nnz)
        self.pattern = pattern
