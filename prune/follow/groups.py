"""Channels that must be cut together, found once per model by following them through a forward pass.

The result is plain data: layer names and channel indices.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from prune.follow.layers import is_producer
from prune.follow.nodes import ChannelNodes, Side
from prune.follow.trace import check_kind, traced
from prune.held_tensors import modules_of
from prune.private import Call, Inputs, bookkeeping
from prune.selection import ChannelSelection

__all__ = ["Group", "Member", "find_groups", "groups_of"]

_UNREACHED = "not reached by the forward pass on the example input"
_UNREAD = "read by no layer that could be cut with it"


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one layer that a group cuts.

    `channels[i]` of that side goes when channel `roots[i]` of the group goes. A flattened 7 x 7 feature map
    gives a linear layer 49 inputs per channel of the group, hence two index lists.
    """

    layer: str
    """A layer, or a parameter outside the layers that surgery knows (a scale per channel)."""
    side: Literal["out", "in"]
    channels: Tensor
    roots: Tensor
    is_whole: bool = True
    """All channels of that side are in this group; a BatchNorm behind a concatenation has some in each."""


@dataclass(frozen=True, eq=False)
class Group:
    """Channels cut together; named after its first convolution or linear layer in the model's own order.

    A channel of the group is the smallest part that can be cut by itself. In a grouped convolution that is one of
    its groups, with all it reads and writes: `unit` channels of its layers.
    """

    name: str
    num_channels: int
    members: tuple[Member, ...]
    obstacle: str | None = None
    """Why this group cannot be pruned, or None."""
    unit: int = 1
    """Channels of the layers per channel of the group."""
    is_normalised: bool = False
    """A norm computes other numbers from what is left of them; see `norm_widths` of `Recipe`."""

    @property
    def width(self) -> int:
        """All channels, as the layers count them."""
        return self.num_channels * self.unit

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers that write channels of this group alone, in the model's order (normalisation layers included)."""
        return tuple(member.layer for member in self.members if member.side == "out" and member.is_whole)


def find_groups(
    model: nn.Module,
    example_inputs: Inputs,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    unused: Sequence[str] = (),
    norm_widths: bool = False,
    within_groups: bool = False,
    select_channels: bool = False,
) -> list[Group]:
    """Return every group of coupled channels, in the model's own order.

    Every convolution and linear layer that has outputs appears in a group, prunable or not: `obstacle` is the
    reason why a group cannot be pruned; one that the forward pass never reached has a reason too.

    Args:
        model: Any module; it is only read. Copies of it run in eval mode and, if that does more, in training mode.
        example_inputs: Positional arguments of `model`, batch first.
        example_kwargs: Arguments by name.
        unused: See `Recipe`.
        norm_widths: See `Recipe`.
        within_groups: See `Recipe`.
        select_channels: See `Recipe`.

    Raises:
        RequestError: If the forward pass fails on the example input, gives no tensor, or the model cannot be cut
            (TorchScript, exported, compiled, quantised, or lazy and never run).
    """
    check_kind(model)
    options = {"norm_widths": norm_widths, "within_groups": within_groups, "select_channels": select_channels}
    return groups_of(model, traced(model, Call.of(example_inputs, example_kwargs), unused, **options))


def groups_of(model: nn.Module, channels: ChannelNodes) -> list[Group]:
    """Return the groups of a model that has been followed."""
    with bookkeeping():
        groups = _grouped(model, channels)
    order = {name: i for i, (name, _) in enumerate(modules_of(model).items())}
    return sorted(groups + _unreached(model, channels), key=lambda group: order[group.name])


def _grouped(model: nn.Module, nodes: ChannelNodes) -> list[Group]:
    """Nodes -> channels (nodes joined) -> groups (channels that one layer writes)."""
    producers = [side for side in _producers(model, nodes) if side.layer in nodes.reached]
    channel_of = _components(nodes.num_nodes, nodes.joined)
    rows = [channel_of[side.nodes] for side in producers]
    group_of = _components(len(channel_of), [(row[:1].expand(len(row) - 1), row[1:]) for row in rows])
    root_of = torch.full_like(group_of, -1)
    written: dict[int, list[Side]] = {}
    counts: Counter[int] = Counter()
    for side, row in zip(producers, rows, strict=True):
        group = int(group_of[row[0]])
        written.setdefault(group, []).append(side)
        new = torch.tensor(list(dict.fromkeys(row[root_of[row] < 0].tolist())), dtype=torch.long)
        root_of[new] = counts[group] + torch.arange(len(new))
        counts[group] += len(new)
    members = _members(nodes, group_of[channel_of], root_of[channel_of])
    unread = {group: _UNREAD for group in written if all(member.side == "out" for member in members[group])}
    reasons = {**unread, **_reasons(nodes, group_of[channel_of])}
    normed = {group for some in nodes.normed for group in group_of[channel_of][some[some >= 0]].unique().tolist()}
    return [
        Group(
            sides[0].layer,
            counts[group],
            tuple(members[group]),
            reasons.get(group),
            _unit(sides, counts[group]),
            group in normed,
        )
        for group, sides in written.items()
    ]


def _unit(sides: list[Side], num_channels: int) -> int:
    """Return how many channels of a layer go together in all layers that write every channel of the group."""
    return math.gcd(*(len(side.nodes) // num_channels for side in sides)) or 1


def _members(nodes: ChannelNodes, group_of: Tensor, root_of: Tensor) -> dict[int, list[Member]]:
    members: dict[int, list[Member]] = {}
    for side in nodes.sides:
        groups, roots = group_of[side.nodes].numpy(), root_of[side.nodes].numpy()  # numpy is faster on few numbers
        cuttable = roots >= 0
        for group in np.unique(groups[cuttable]).tolist():
            places = np.flatnonzero((groups == group) & cuttable)
            is_whole = len(places) == len(roots)
            member = Member(side.layer, side.side, torch.from_numpy(places), torch.from_numpy(roots[places]), is_whole)
            members.setdefault(group, []).append(member)
    return members


def _reasons(nodes: ChannelNodes, group_of: Tensor) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for pinned, reason in nodes.pinned:
        for group in group_of[pinned[pinned >= 0]].unique().tolist():
            reasons.setdefault(group, reason)
    return reasons


def _components(num: int, joined: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the component of every one of `num` nodes."""
    one = torch.cat([pair[0] for pair in joined] or [torch.empty(0, dtype=torch.long)]).numpy()
    other = torch.cat([pair[1] for pair in joined] or [torch.empty(0, dtype=torch.long)]).numpy()
    graph = coo_array((torch.ones(len(one), dtype=torch.int8).numpy(), (one, other)), shape=(num, num))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def _producers(model: nn.Module, nodes: ChannelNodes) -> list[Side]:
    layers = modules_of(model)

    def writes(layer: object) -> bool:
        return is_producer(layer) or (nodes.select_channels and isinstance(layer, ChannelSelection))

    return [side for side in nodes.sides if side.side == "out" and writes(layers.get(side.layer))]


def _unreached(model: nn.Module, nodes: ChannelNodes) -> list[Group]:
    sides = [side for side in _producers(model, nodes) if side.layer not in nodes.reached]
    return [Group(side.layer, len(side.nodes), (), _UNREACHED) for side in sides]
