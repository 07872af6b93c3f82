"""Nodes: every channel of every layer, what must go together, and what must stay.

Each dimension of a tensor has the node of the channel at every position.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import IOBase
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.weak import WeakTensorKeyDictionary

from prune.follow.layers import cut_dims, is_producer, vectors_of, weight_of

__all__ = ["Caller", "ChannelNodes", "Nodes", "Side", "is_producer", "tensors_in"]

Nodes = tuple[Tensor | None, ...]
"""Per dimension of a tensor: the node of each position (-1: none), or None where positions are no channels."""

_NOT_ENTERED = (nn.Module, type, ModuleType, str, bytes, int, float, complex, torch.dtype, torch.device)
_MOST_ITEMS = 10_000


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
    """

    def __init__(self, model: nn.Module, norm_widths: bool = False, within_groups: bool = False) -> None:
        self.norm_widths, self.within_groups = norm_widths, within_groups
        self.sides: list[Side] = []
        self.num_nodes = 0
        self.joined: list[tuple[Tensor, Tensor]] = []
        self.pinned: list[tuple[Tensor, str]] = []
        """Nodes and the reason."""
        self.trains_alike = False
        """Whether training mode is known to run the same operations as eval mode."""
        self.reached: set[str] = set()
        """Layers whose tensors an operation has used."""
        self.caller: Caller | None = None
        """None where the caller is not known: TorchScript calls operations by itself."""
        self._nodes = WeakTensorKeyDictionary()
        self._owner = WeakTensorKeyDictionary()
        self._places: dict[tuple[str, str], Tensor] = {}
        self._opposite: dict[int, Tensor] = {}
        self._read: set[int] = set()
        for name, module in model.named_modules():
            self._register(name, module)

    def nodes(self, tensor: Tensor) -> Nodes | None:
        """Return the tensor's nodes per dimension, or None if it has none."""
        if tensor in self._owner:
            self.reached.add(self._owner[tensor])
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

    def pin_all(self, value: Any, reason: str) -> None:
        """Pin every node of every tensor in a nest of lists, tuples and dictionaries."""
        for tensor in tensors_in(value):
            for nodes in self.nodes(tensor) or ():
                self.pin(nodes, reason)

    def normalised(self, nodes: Tensor | None, reason: str) -> None:
        """Pin nodes whose values depend on which others are there, unless the recipe accepts that."""
        if not self.norm_widths:
            self.pin(nodes, reason)

    def _register(self, name: str, module: nn.Module) -> None:
        if is_producer(module):
            self._register_layer(name, module)
        elif isinstance(module, _BatchNorm):
            nodes = self._new_side(name, "out", module.num_features)
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                self._own(tensor, name, (nodes,))
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
        self._own(layer.bias, name, (outputs,))
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


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor that an object holds, whatever it holds it in, in the order of its contents.

    Arrays of numpy count as tensors. Modules, classes and the globals of functions are not entered. Iterators are used
    up, endless ones at first: call this while what computes their items may still be watched.
    """
    found: list[Tensor] = []
    seen: dict[int, Any] = {}  # kept alive, so that no other object gets its id
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, _NOT_ENTERED) or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, np.ndarray) and item.dtype.kind in "biufc":
            found.append(torch.from_numpy(item.copy()))
        left += reversed(_contents(item))
    return found


def _contents(item: Any) -> list[Any]:
    if isinstance(item, Tensor):
        return list(vars(item).values())
    if isinstance(item, np.ndarray):
        return item.ravel().tolist() if item.dtype.hasobject else []
    if isinstance(item, FunctionType):
        return [item.__defaults__, item.__kwdefaults__, item.__closure__]
    if isinstance(item, Iterator) and not isinstance(item, IOBase):
        return list(islice(item, _MOST_ITEMS))
    held = gc.get_referents(item)
    return held[::-1] if isinstance(item, list | tuple) else held  # which name their items from the last to the first
