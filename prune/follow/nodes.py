"""Nodes: every channel of every layer, what must go together, and what must stay.

Each dimension of a tensor has the node of the channel at every position.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.weak import WeakTensorKeyDictionary

from prune.follow.layers import cut_dims, is_producer, vectors_of, weight_of
from prune.held_tensors import modules_of, tensors_in
from prune.selection import ChannelSelection

__all__ = ["Caller", "ChannelNodes", "Nodes", "Side"]

Nodes = tuple[Tensor | None, ...]
"""Per dimension of a tensor: the node of each position (-1: none), or None where positions are no channels."""


@dataclass(frozen=True, eq=False)
class Side:
    """The channels of one side of one layer, or of a tensor or attribute outside the layers known here."""

    layer: str
    side: Literal["out", "in"]
    nodes: Tensor


@dataclass(frozen=True)
class Caller:
    """The torch function that the forward pass has called, and the whole numbers it gave, in their order."""

    name: str
    numbers: Sequence[int]
    rule: Callable[..., None] | None = None
    """How it is followed as a whole; its operations are not."""
    followed: set[int] = field(default_factory=set)
    """Places of numbers that an operation has tied to nodes."""


class ChannelNodes:
    """Which nodes a model's tensors carry; nodes that are joined go together, nodes that are pinned stay.

    Args:
        model: Its parameters and buffers get nodes; nothing of it is changed.
        norm_widths: Channels that are normalised together may be cut.
        within_groups: Groups of a convolution lose the same channels each, in place of whole groups.
        select_channels: What a channel selection passes on may be cut, and what it reads stays.
        whole_parts: Attributes that count parts, such as heads, which go as a whole.
    """

    def __init__(
        self,
        model: nn.Module,
        norm_widths: bool = False,
        within_groups: bool = False,
        select_channels: bool = False,
        whole_parts: Set[str] = frozenset(),
    ) -> None:
        self.norm_widths, self.within_groups, self.whole_parts = norm_widths, within_groups, whole_parts
        self.select_channels = select_channels
        self.or_whole: dict[int, str] = {}
        """Node of a channel that goes from every part -> the attribute that counts these parts."""
        self.needs_whole: set[str] = set()
        """Attributes that count parts whose channels cannot go."""
        self.sides: list[Side] = []
        self.num_nodes = 0
        self.joined: list[tuple[Tensor, Tensor]] = []
        self.pinned: list[tuple[Tensor, str]] = []
        """Nodes and the reason."""
        self.eval_run: Any = None
        """The `Run` in eval mode, if it needed no numbers."""
        self.normed: list[Tensor] = []
        """Nodes that may be cut though a norm computes other numbers then."""
        self.trains_alike = False
        """Whether training mode is known to run the same operations as eval mode."""
        self.no_training: str | None = None
        """Why training mode fails on the example input, if it does."""
        self.reached: set[str] = set()
        """Layers whose tensors an operation has used."""
        self.caller: Caller | None = None
        """None where the caller is not known: TorchScript calls operations by itself."""
        self._nodes = WeakTensorKeyDictionary()
        self._owner = WeakTensorKeyDictionary()
        self._pinned_if_used = WeakTensorKeyDictionary()
        self._places: dict[tuple[str, str], Tensor] = {}
        self._opposite: dict[int, Tensor] = {}
        self._read: set[int] = set()
        for name, module in modules_of(model).items():
            self._register(name, module)

    @property
    def owners(self) -> list[str]:
        """The layers, and the parameters outside them, that have channels; their own tensors count as one."""
        return list(dict.fromkeys(owner for tensor, owner in self._owner.items() if isinstance(tensor, nn.Parameter)))

    def nodes(self, tensor: Tensor) -> Nodes | None:
        """Return the tensor's nodes per dimension, or None if it has none."""
        if tensor in self._owner:
            self.reached.add(self._owner[tensor])
        if self._pinned_if_used and (pinned := self._pinned_if_used.get(tensor)):
            self.pin(*pinned)
        found: Nodes | None = self._nodes.get(tensor)
        return found

    def dims(self, tensor: Tensor) -> Nodes:
        """Return the tensor's nodes per dimension, all None if it has none."""
        return self.nodes(tensor) or (None,) * tensor.ndim

    def nodes_of(self, layer: str, side: str) -> Tensor:
        """Return the nodes of one side of a layer or of a tensor outside the layers."""
        return self._places[layer, side]

    def attribute_nodes(self, name: str, num: int) -> Tensor:
        """Return the nodes that an attribute of a module counts; it has them from their first use on."""
        return self._places[name, "out"] if (name, "out") in self._places else self._new_side(name, "out", num)

    def opposite(self, nodes: Tensor, num: int) -> Tensor | None:
        """Return the nodes of the other side of the grouped layer whose rows these are, if there are `num` of them."""
        found = self._opposite.get(int(nodes[0]))
        return found if found is not None and len(found) == num else None

    def is_read_by_layer(self, nodes: Tensor) -> bool:
        """Return whether these are inputs of a convolution or linear layer, hence part of its weight."""
        return int(nodes[0]) in self._read

    def is_own(self, tensor: Tensor) -> bool:
        """Return whether it is a parameter or buffer itself, rather than computed from some."""
        return tensor in self._owner

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

    def tie(self, rows: Tensor, reason: str) -> None:
        """Tie the rows of a table of nodes to its first row, position by position."""
        self.join(rows[:1].expand_as(rows[1:]).flatten(), rows[1:].flatten(), reason)

    def tie_runs(self, nodes: Tensor, length: int, reason: str) -> Tensor:
        """Tie neighbours in runs of that length; return the first of each."""
        runs = nodes.view(-1, length)
        self.tie(runs.T, reason)
        return runs[:, 0]

    def pin(self, nodes: Tensor | None, reason: str) -> None:
        """Mark these nodes as not to be cut."""
        if nodes is not None and nodes.numel():
            self.pinned.append((nodes.flatten(), reason))

    def pin_if_used(self, tensor: Tensor, nodes: Tensor, reason: str) -> None:
        """Mark these nodes as not to be cut if an operation takes the tensor, or it is an output."""
        self._pinned_if_used[tensor] = (nodes, reason)

    def pin_in_parts(self, nodes: Tensor | None, reason: str) -> None:
        """Mark channels of every part as not to be cut; whole parts may be."""
        self.pin(nodes, reason)
        if nodes is not None:
            self.needs_whole |= {self.or_whole[node] for node in nodes.tolist() if node in self.or_whole}

    def pin_all(self, value: Any, reason: str) -> None:
        """Pin every node of every tensor in a nest of lists, tuples and dictionaries."""
        for tensor in tensors_in(value):
            for nodes in self.nodes(tensor) or ():
                self.pin(nodes, reason)

    def normalised(self, nodes: Tensor | None, reason: str) -> None:
        """Pin nodes whose values depend on which others are there, unless the recipe accepts that."""
        if not self.norm_widths:
            self.pin(nodes, reason)
        elif nodes is not None:
            self.normed.append(nodes.flatten())

    def _register(self, name: str, module: nn.Module) -> None:
        if is_producer(module):
            self._register_layer(name, module)
        elif isinstance(module, _BatchNorm):
            nodes = self._new_side(name, "out", module.num_features)
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                self._own(tensor, name, (nodes,))
        elif isinstance(module, ChannelSelection):
            inputs, outputs = self._new_side(name, "in", module.num_in), self._new_side(name, "out", len(module.index))
            self._own(module.index, name, (outputs,))
            self._opposite[int(outputs[0])] = inputs
        for key, tensor in vectors_of(module).items():
            if not (isinstance(module, ParametrizationList) and tensor in self._owner):
                self._register_tensor(f"{name}.{key}".lstrip("."), tensor)

    def _register_layer(self, name: str, layer: Any) -> None:
        weight, groups, transposed = weight_of(layer), getattr(layer, "groups", 1), getattr(layer, "transposed", False)
        num_rows, num_columns = weight.shape[0], weight.shape[1] * groups
        num_in, num_out = (num_rows, num_columns) if transposed else (num_columns, num_rows)
        inputs, outputs = self._new_side(name, "in", num_in), self._new_side(name, "out", num_out)
        rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
        if weight in self._owner and groups > 1:  # a weight that two layers share
            self.joined.append((self._opposite[int(self._nodes[weight][0][0])], columns))
        self._own(weight, name, (rows, columns if groups == 1 else None, *(None,) * (weight.ndim - 2)))
        self._own(getattr(layer, "bias", None), name, (outputs,))
        self._opposite[int(rows[0])] = columns
        self._read.update(inputs.tolist())

    def _register_tensor(self, name: str, tensor: Tensor) -> None:
        nodes: list[Tensor | None] = [None] * tensor.ndim
        for side, dim in cut_dims(tensor).items():
            nodes[dim] = self._new_side(name, side, tensor.shape[dim])
        self._own(tensor, name, tuple(nodes))

    def _new_side(self, layer: str, side: Literal["out", "in"], num: int) -> Tensor:
        nodes = torch.arange(self.num_nodes, self.num_nodes + num, device="cpu")
        self.num_nodes += num
        self.sides.append(Side(layer, side, nodes))
        self._places[layer, side] = nodes
        return nodes

    def _own(self, tensor: Tensor | None, layer: str, nodes: Nodes) -> None:
        if tensor is None:
            return
        for known, new in zip(self._nodes.get(tensor, ()), nodes, strict=False):  # a parameter that two layers share
            if known is not None and new is not None:
                self.joined.append((known, new))
        self._nodes.setdefault(tensor, nodes)
        self._owner.setdefault(tensor, layer)
