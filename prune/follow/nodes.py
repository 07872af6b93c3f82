"""Nodes: every channel of every layer, what must go together, and what must stay.

Each dimension of a tensor has the node of the channel at every position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["ChannelNodes", "Nodes", "Side", "is_producer", "tensors_in"]

Nodes = tuple[Tensor | None, ...]
"""Per dimension of a tensor: the node of each position (-1: none), or None where positions are no channels."""


@dataclass(frozen=True, eq=False)
class Side:
    """The channels of one side of one layer, or of a parameter outside the layers known here."""

    layer: str
    side: Literal["out", "in"]
    nodes: Tensor


def is_producer(module: nn.Module | None) -> bool:
    """Return whether the module computes new channels: a convolution (transposed ones too) or a linear layer."""
    return isinstance(module, _ConvNd | nn.Linear)


class ChannelNodes:
    """Which nodes a model's tensors carry; nodes that are joined go together, nodes that are pinned stay.

    Args:
        model: Its parameters get nodes; nothing of it is changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.sides: list[Side] = []
        self.num_nodes = 0
        self.joined: list[tuple[Tensor, Tensor]] = []
        self.pinned: list[tuple[Tensor, str]] = []
        """Nodes and the reason."""
        self.reached: set[str] = set()
        """Layers whose tensors an operation has used."""
        self._nodes = WeakTensorKeyDictionary()
        self._inputs = WeakTensorKeyDictionary()
        self._owner = WeakTensorKeyDictionary()
        for name, module in model.named_modules():
            self._register(name, module)

    def nodes(self, tensor: Tensor) -> Nodes | None:
        """Return the tensor's nodes per dimension, or None if it has none."""
        if tensor in self._owner:
            self.reached.add(self._owner[tensor])
        found: Nodes | None = self._nodes.get(tensor)
        return found

    def input_nodes(self, weight: Tensor, num: int) -> Tensor | None:
        """Return the nodes of the inputs of a layer, `num` of them, by its weight; None if it is no layer's weight."""
        side: Side | None = self._inputs.get(weight)
        return side.nodes if side and len(side.nodes) == num else None

    def carry(self, tensor: Any, nodes: Sequence[Tensor | None]) -> None:
        """Give a result its nodes."""
        if isinstance(tensor, Tensor) and any(n is not None for n in nodes):
            self._nodes[tensor] = tuple(nodes)

    def join(self, one: Tensor | None, other: Tensor | None, reason: str) -> None:
        """Tie two runs of nodes position by position; a node with no counterpart is pinned."""
        if one is None or other is None:
            self.pin(one if other is None else other, reason)
            return
        both = torch.minimum(one, other) >= 0
        if both.all():
            self.joined.append((one, other))
            return
        self.joined.append((one[both], other[both]))
        self.pin(torch.where(one >= 0, one, other)[(one >= 0) != (other >= 0)], reason)

    def pin(self, nodes: Tensor | None, reason: str) -> None:
        """Mark these nodes as not to be cut."""
        if nodes is not None and nodes.numel():
            self.pinned.append((nodes, reason))

    def pin_all(self, value: Any, reason: str) -> None:
        """Pin every node of every tensor in a nest of lists, tuples and dictionaries."""
        for tensor in tensors_in(value):
            for nodes in self.nodes(tensor) or ():
                self.pin(nodes, reason)

    def _register(self, name: str, module: nn.Module) -> None:
        if isinstance(module, _ConvNd | nn.Linear):
            self._register_layer(name, module)
        elif isinstance(module, _BatchNorm):
            nodes = self._new_side(name, "out", module.num_features)
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                self._own(tensor, name, (nodes,))
        else:
            for key, parameter in module.named_parameters(recurse=False):
                self._register_parameter(f"{name}.{key}".lstrip("."), parameter)

    def _register_layer(self, name: str, layer: _ConvNd | nn.Linear) -> None:
        transposed = getattr(layer, "transposed", False)
        num_in = layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features
        num_out = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
        inputs, outputs = self._new_side(name, "in", num_in), self._new_side(name, "out", num_out)
        grouped = getattr(layer, "groups", 1) > 1
        pair = (inputs, outputs) if transposed else (outputs, inputs)
        kernel = (None,) * (layer.weight.ndim - 2)
        self._own(layer.weight, name, (*((pair[0], None) if grouped else pair), *kernel))
        self._own(layer.bias, name, (outputs,))
        if transposed and grouped:
            self.pin(torch.cat([inputs, outputs]), f"{name} is a grouped transposed convolution, which cannot be cut")
        if is_parametrized(layer, "weight"):
            self.reached.add(name)
            self.pin(outputs, "its weight is computed by a parametrization; remove that first")
        self._inputs[layer.weight] = self.sides[-2]

    def _register_parameter(self, name: str, parameter: Tensor) -> None:
        sizes = [size for size in parameter.shape if size > 1]
        if len(sizes) == 1:  # with more dimensions it is unknown which holds the channels
            nodes = self._new_side(name, "out", sizes[0])
            self._own(parameter, name, tuple(nodes if size > 1 else None for size in parameter.shape))

    def _new_side(self, layer: str, side: Literal["out", "in"], num: int) -> Tensor:
        nodes = torch.arange(self.num_nodes, self.num_nodes + num)
        self.num_nodes += num
        self.sides.append(Side(layer, side, nodes))
        return nodes

    def _own(self, tensor: Tensor | None, layer: str, nodes: Nodes) -> None:
        if tensor is None:
            return
        for known, new in zip(self._nodes.get(tensor, ()), nodes, strict=False):  # a parameter that two layers share
            if known is not None and new is not None:
                self.joined.append((known, new))
        self._nodes.setdefault(tensor, nodes)
        self._owner.setdefault(tensor, layer)


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor in a nest of lists, tuples, dictionaries and objects with such attributes."""
    found = []
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, set | frozenset):
            found += tensors_in(list(leaf))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            found += tensors_in(vars(leaf))
    return found
