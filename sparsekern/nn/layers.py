"""Linear and convolutional layers whose weights are masked."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ops.masked import SparsityPattern, masked_conv2d, masked_linear
from ..ops.masked.linear import check_weight_grad


class _Masked(nn.Module):
    """What masked layers share: a mask buffer, its pattern, and how they stay one.

    The weight is the dense parameter of the layer that this is mixed into. Entries under the mask
    are neither read nor, with ``weight_grad="masked"``, given a gradient other than 0.
    """

    weight: Tensor
    mask: Tensor
    weight_grad: str
    _pattern: SparsityPattern | None

    def _init_mask(self, mask: Tensor | SparsityPattern | None, weight_grad: str) -> None:
        check_weight_grad(weight_grad)
        self.weight_grad = weight_grad
        device = self.weight.device
        self.register_buffer("mask", torch.ones(self.weight.shape, dtype=torch.bool, device=device))
        self._prepare()
        if mask is not None:
            self.set_mask(mask)

    @property
    def pattern(self) -> SparsityPattern | Tensor:
        """What products are given: the prepared mask, or the mask itself on the meta device."""
        return self.mask if self._pattern is None else self._pattern

    @property
    def sparsity(self) -> float:
        """The share of weights that the mask removes."""
        if self._pattern is None:
            raise RuntimeError("the sparsity of a layer on the meta device is not known")
        return self._pattern.sparsity

    def set_mask(self, mask: Tensor | SparsityPattern) -> None:
        """Takes another mask; the weight stays as it is, what becomes visible of it included.

        Args:
            mask: bool, of the weight's shape, on any device, or a pattern. It is copied.

        Raises:
            TypeError: if it is neither.
            ValueError: if its shape is not the weight's, or it has no values (device meta).
        """
        kept = mask.mask if isinstance(mask, SparsityPattern) else mask
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
            found = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
            raise TypeError(f"mask must be a bool tensor or a SparsityPattern, got {found}")
        if kept.shape != self.weight.shape:
            raise ValueError(
                f"mask has shape {tuple(kept.shape)} and the weight {tuple(self.weight.shape)}: "
                "expected the same"
            )
        if kept.is_meta and not self.mask.is_meta:
            raise ValueError(f"mask is on meta and the weight on {self.weight.device}")
        kept = kept.to(self.mask.device)
        if self._pattern is None:
            self.mask = kept.clone()
        else:
            self._pattern.update_(kept)

    def _prepare(self) -> None:
        """Makes the pattern anew from the buffer, and the buffer the pattern's own mask."""
        if self.mask.is_meta:
            self._pattern = None
        else:
            self._pattern = SparsityPattern(self.mask)
            self.mask = self._pattern.mask

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._pattern is None or self.mask is not self._pattern.mask:
            self._prepare()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A checkpoint of the dense layer has no mask: the present one stays.
        if f"{prefix}mask" not in state_dict:
            state_dict = {**state_dict, f"{prefix}mask": self.mask}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._prepare()

    def extra_repr(self) -> str:
        """The layer's own description, and how sparse it is."""
        share = "" if self._pattern is None else f", sparsity={self.sparsity:.4f}"
        dense = ', weight_grad="dense"' if self.weight_grad == "dense" else ""
        return f"{super().extra_repr()}{share}{dense}"


class MaskedLinear(_Masked, nn.Linear):
    """A linear layer ``x (W⊙M)ᵀ + b``; see :func:`sparsekern.masked_linear`.

    Its state_dict is that of ``nn.Linear`` with a bool buffer ``mask``; one without the buffer
    loads too, and leaves the mask as it is.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether to add one.
        mask: bool ``(out_features, in_features)`` or a pattern; None keeps every weight.
        weight_grad: ``"masked"``, or ``"dense"`` for the straight-through gradient.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        mask: Tensor | SparsityPattern | None = None,
        weight_grad: str = "masked",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._init_mask(mask, weight_grad)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return masked_linear(
            input, self.weight, self.pattern, self.bias, weight_grad=self.weight_grad
        )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        mask: Tensor | SparsityPattern | None = None,
        *,
        weight_grad: str = "masked",
    ) -> MaskedLinear:
        """The masked form of a linear layer, which shares its parameters.

        Raises:
            TypeError: for another kind of layer, or a mask that is no bool tensor.
            ValueError: for a mask of another shape.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            weight_grad=weight_grad,
            device="meta",
            dtype=linear.weight.dtype,
        )
        _take_over(layer, linear, mask)
        return layer


class MaskedConv2d(_Masked, nn.Conv2d):
    """A convolution whose weight is masked; see :func:`sparsekern.masked_conv2d`.

    Its state_dict is that of ``nn.Conv2d`` with a bool buffer ``mask``; one without the buffer
    loads too, and leaves the mask as it is.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: as in ``nn.Conv2d``; the other arguments up to ``padding_mode`` too.
        mask: bool, of the weight's shape, or a pattern; None keeps every weight.
        weight_grad: ``"masked"``, or ``"dense"`` for the straight-through gradient.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        mask: Tensor | SparsityPattern | None = None,
        weight_grad: str = "masked",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._init_mask(mask, weight_grad)

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` or ``(C, H, W)`` to the result of the convolution."""
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            pads = self._reversed_padding_repeated_twice
            input = nn.functional.pad(input, pads, mode=self.padding_mode)
            padding = (0, 0)
        return masked_conv2d(
            input,
            self.weight,
            self.pattern,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            weight_grad=self.weight_grad,
        )

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        mask: Tensor | SparsityPattern | None = None,
        *,
        weight_grad: str = "masked",
    ) -> MaskedConv2d:
        """The masked form of a convolution, which shares its parameters.

        Raises:
            TypeError: for another kind of layer, or a mask that is no bool tensor.
            ValueError: for a mask of another shape.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv must be a torch.nn.Conv2d, got {type(conv).__name__}")
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            weight_grad=weight_grad,
            device="meta",
            dtype=conv.weight.dtype,
        )
        _take_over(layer, conv, mask)
        return layer


def _take_over(
    layer: MaskedLinear | MaskedConv2d,
    dense: nn.Linear | nn.Conv2d,
    mask: Tensor | SparsityPattern | None,
) -> None:
    layer.weight, layer.bias = dense.weight, dense.bias
    layer.train(dense.training)
    layer.mask = torch.ones(dense.weight.shape, dtype=torch.bool, device=dense.weight.device)
    layer._prepare()
    if mask is not None:
        layer.set_mask(mask)
