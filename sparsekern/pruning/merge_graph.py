"""Which layers of a model can be merged into their neighbour: its graph, followed symbolically."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.meta_tracer import MetaTracer
from torch.nn import functional as F

from .merge_products import BatchNorm, Layer, folded, merged_size, padding_of

# Activations that are the identity on [0, ∞).
_IDENTITIES = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU)
_IDENTITY_CALLS = {
    *(torch.relu, torch.relu_, F.relu, F.relu_, F.leaky_relu, F.elu, F.celu),
    *("relu", "relu_"),
}
# What gives no negative values whatever it is given, and what gives none for none.
_POSITIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax)
_POSITIVE_CALLS = {
    *(torch.relu, torch.relu_, F.relu, F.relu_, F.relu6, torch.abs, torch.sigmoid, F.softplus),
    *(torch.square, torch.exp, F.softmax, torch.softmax, F.sigmoid),
    *("relu", "relu_", "abs", "sigmoid", "square", "exp", "softmax", "size"),
}
_PRESERVING = (
    *_IDENTITIES,
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Upsample),
)
_PRESERVING_CALLS = {
    *_IDENTITY_CALLS,
    *(operator.getitem, torch.cat, torch.flatten, torch.mean, torch.sum, torch.reshape),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout),
    *("view", "reshape", "flatten", "mean", "sum", "contiguous"),
    *("permute", "transpose", "amax", "squeeze", "unsqueeze"),
}
# The same, if numbers among their arguments are not negative either.
_ARITHMETIC = {
    *(operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul),
    *("add", "add_", "mul", "mul_"),
}
_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


class Candidate(NamedTuple):
    """A layer that can be merged into the next one.

    Attributes:
        name: of the layer.
        into: of the next one.
        norm: of the batch norm between the layer and its activation, or None.
        activation: of its activation, where it is a module that is used only here.
        between: of what stands between activation and next layer and does nothing.
        weight: the layer's, with the batch norm folded in, float64.
        bias: the same.
    """

    name: str
    into: str
    norm: str | None
    activation: str | None
    between: tuple[str, ...]
    weight: Tensor
    bias: Tensor


def _is_leaf(module: nn.Module) -> bool:
    """Layers stay whole, subclasses of torch's among them."""
    return isinstance(module, nn.Linear | nn.Conv2d)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


class _ShapeTracer(MetaTracer):
    """Knows the shapes of tensors, which some models look at."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, example: Tensor | None) -> fx.Graph:
    """The model's graph; where its forward looks at shapes, that for shapes of the example.

    Raises:
        ValueError: if the model cannot be traced.
    """
    try:
        try:
            return _Tracer().trace(model)
        except Exception:
            if example is None:
                raise
            name = next(iter(inspect.signature(model.forward).parameters))
            on_meta = copy.deepcopy(model).to("meta")
            graph: fx.Graph = _ShapeTracer().trace(on_meta, {name: example.to("meta")})
            return graph
    except Exception as error:  # whatever a model's forward raises when it is given proxies
        hint = "; with an example, shapes would be known" if example is None else ""
        raise ValueError(
            f"model of type {type(model).__name__} cannot be followed symbolically (torch.fx): "
            f"{error}{hint}"
        ) from error


def candidates(
    model: nn.Module, nonnegative_input: bool, allow_growth: bool, example: Tensor | None
) -> Iterator[tuple[str, Candidate | str]]:
    """Each linear and convolutional layer in the order of use, as a candidate or why it is none.

    Raises:
        ValueError: if the model cannot be traced.
    """
    graph = _trace(model, example)
    walk = _Walk(model, graph, nonnegative_input, allow_growth)
    for node in graph.nodes:
        layer = walk.module(node)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield str(node.target), walk.candidate(node, layer)


class _Walk:
    """Questions about the nodes of one graph."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, nonnegative_input: bool, allow_growth: bool
    ) -> None:
        self._modules = dict(model.named_modules())
        self._allow_growth = allow_growth
        self._uses = Counter(id(self.module(node)) for node in graph.nodes if self.module(node))
        owners = [p for m in set(self._modules.values()) for p in m._parameters.values()]
        self._shared = {id(p) for p, count in Counter(owners).items() if count > 1}
        self._nonnegative: dict[fx.Node, bool] = {}
        for node in graph.nodes:
            self._nonnegative[node] = self._is_nonnegative(node, nonnegative_input)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def candidate(self, node: fx.Node, layer: Layer) -> Candidate | str:
        """The layer as a candidate, or why it is none."""
        problem = self._unsuitable(layer)
        if problem:
            return problem
        if not self._nonnegative[node.all_input_nodes[0]]:
            return "its input may be negative"
        norm, after = self._batch_norm_after(node)
        activation = self._only_user(after)
        if activation is None or not self._is_identity(activation):
            return "no activation that is the identity on [0, ∞) follows it alone"
        weight, bias = folded(layer, norm)
        negative = int((weight < 0).sum()), int((bias < 0).sum())
        if any(negative):
            folding = "" if norm is None else ", batch norm folded in"
            return f"{negative[0]} weights and {negative[1]} biases are negative{folding}"
        between, target = self._next_layer(activation)
        neighbour = None if target is None else self.module(target)
        if target is None or not isinstance(neighbour, nn.Linear | nn.Conv2d):
            return "no linear or convolutional layer follows its activation alone"
        problem = self._cannot_join(layer, bias, neighbour)
        if problem:
            return f"{target.target}, which follows, {problem}"
        module = self.module(activation)
        single = module is not None and self._uses[id(module)] == 1
        return Candidate(
            str(node.target),
            str(target.target),
            None if norm is None else str(after.target),
            str(activation.target) if single else None,
            between,
            weight,
            bias,
        )

    def _unsuitable(self, layer: nn.Module) -> str:
        if type(layer) not in (nn.Linear, nn.Conv2d):
            return f"it is a {type(layer).__name__}, of which nothing is known"
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            return "its weight is parametrised or pruned by torch.nn.utils"
        if self._uses[id(layer)] > 1 or any(id(p) in self._shared for p in layer.parameters()):
            return "it or its weight is used more than once"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "it has forward hooks"
        if isinstance(layer, nn.Conv2d):
            if layer.groups != 1:
                return "it is a grouped convolution"
            if padding_of(layer) is None:
                return "it does not pad by zeros, the same on both sides"
        return ""

    def _cannot_join(self, first: Layer, bias: Tensor, second: Layer) -> str:
        problem = self._unsuitable(second)
        if problem:
            return f"cannot take it: {problem}"
        if type(first) is not type(second):
            return "is of another kind"
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
            pointwise = first.kernel_size == (1, 1) and padding_of(first) == (0, 0)
            if padding_of(second) != (0, 0) and not (pointwise and not bias.any()):
                return "pads its input, so that the border would not be the same"
        before = first.weight.numel() + second.weight.numel()
        after = merged_size(first, second)
        if after > before and not self._allow_growth:
            return f"would have {after} weights, more than the {before} of both"
        return ""

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0].op != "output" else None

    def _batch_norm_after(self, node: fx.Node) -> tuple[BatchNorm | None, fx.Node]:
        user = self._only_user(node)
        norm = None if user is None else self.module(user)
        if (
            user is not None
            and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
            and isinstance(norm, BatchNorm)
            and norm.running_mean is not None
            and norm.num_features == _outputs(self.module(node))
            and self._uses[id(norm)] == 1
        ):
            return norm, user
        return None, node

    def _is_identity(self, node: fx.Node) -> bool:
        module = self.module(node)
        if module is not None:
            return type(module) in _IDENTITIES
        return node.target in _IDENTITY_CALLS

    def _next_layer(self, node: fx.Node) -> tuple[tuple[str, ...], fx.Node | None]:
        between: list[str] = []
        user = self._only_user(node)
        while user is not None and type(self.module(user)) in _TRANSPARENT:
            between.append(str(user.target))
            user = self._only_user(user)
        return tuple(between), user

    def _is_nonnegative(self, node: fx.Node, input_is: bool) -> bool:
        if node.op == "placeholder":
            return input_is
        module = self.module(node)
        if module is not None:
            inputs = [self._nonnegative[n] for n in node.all_input_nodes]
            if isinstance(module, nn.Threshold):
                return module.threshold >= 0 and module.value >= 0
            if isinstance(module, nn.Upsample) and module.mode == "bicubic":
                return False
            preserved = type(module) in _PRESERVING and all(inputs)
            return type(module) in _POSITIVE or preserved
        if node.op not in ("call_function", "call_method"):
            return False
        if node.target in _POSITIVE_CALLS or (node.target is getattr and node.args[1] == "shape"):
            return True
        numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, int | float)]
        arithmetic = node.target in _ARITHMETIC and all(number >= 0 for number in numbers)
        if not arithmetic and node.target not in _PRESERVING_CALLS:
            return False
        return all(self._nonnegative[argument] for argument in node.all_input_nodes)


def _outputs(layer: nn.Module | None) -> int:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return len(layer.weight)
