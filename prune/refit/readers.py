"""The one layer that reads a group's channels, whose weights can be refitted when channels go."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from prune.follow.groups import Group, Member
from prune.held_tensors import modules_of
from prune.private import Call, PrivateModel

__all__ = ["Reader", "readers_of"]


@dataclass(frozen=True, eq=False)
class Reader:
    """A convolution or linear layer that alone reads a group's channels.

    Its weight is taken as a matrix (O, D): output channels by all numbers that one output reads.
    """

    layer: str
    group: str
    columns: Tensor
    """Columns of that matrix per channel of the group, (C, K)."""

    def kept_columns(self, kept: Tensor) -> Tensor:
        """Return the columns of these channels, ascending, as they follow each other in the slim layer."""
        return self.columns[kept].flatten().sort().values


def readers_of(model: nn.Module, groups: Sequence[Group], call: Call) -> tuple[dict[str, Reader], dict[str, str]]:
    """Return the reader of every group that has one, in the order of the forward pass, and why the others have none.

    Args:
        model: It is only read.
        groups: Its groups of coupled channels.
        call: What it is called with.
    """
    uses = Counter(id(weight) for module in modules_of(model).values() for weight in module._parameters.values())
    found: dict[str, Reader] = {}
    reasons: dict[str, str] = {}
    for group in groups:
        reading = _reading(model, group)
        reason = reading if isinstance(reading, str) else _obstacle(model.get_submodule(reading.layer), uses)
        if isinstance(reading, str) or reason:
            reasons[group.name] = f"cannot be refitted: {reason}"
        else:
            found[group.name] = _reader(model.get_submodule(reading.layer), reading, group)
    calls = _calls(model, {reader.layer for reader in found.values()}, call)
    for name in [name for name, reader in found.items() if calls.count(reader.layer) != 1]:
        reasons[name] = f"cannot be refitted: {found.pop(name).layer}, which reads it, runs more than once"
    return dict(sorted(found.items(), key=lambda item: calls.index(item[1].layer))), reasons


def _reading(model: nn.Module, group: Group) -> Member | str:
    """Return the side that reads the group, or why there is not exactly one that could be refitted."""
    reading = [m for m in group.members if m.side == "in" and not _passes(model, group, m)]
    if group.is_normalised or group.unit > 1:
        return "its channels are not read one by one"
    if any(member.side == "out" and len(member.roots.unique()) < group.num_channels for member in group.members):
        return "its channels are written in parts"
    if shared := [member.layer for member in group.members if not member.is_whole]:
        return f"{shared[0]} takes it together with other channels"
    if len(reading) != 1:
        names = ", ".join(member.layer for member in reading[:3])
        return f"read by {len(reading)} layers, {names}{', ...' * (len(reading) > 3)}" if reading else "read by none"
    counts = reading[0].roots.bincount(minlength=group.num_channels)
    return reading[0] if (counts == counts[0]).all() else "its channels are read unequally often"


def _passes(model: nn.Module, group: Group, member: Member) -> bool:
    """Return whether the layer is a depthwise convolution, which passes each channel on by itself."""
    layer = modules_of(model).get(member.layer)
    writes = any((other.layer, other.side) == (member.layer, "out") for other in group.members)
    return writes and getattr(layer, "groups", 1) == len(member.channels)


def _obstacle(layer: nn.Module, uses: Mapping[int, int]) -> str | None:
    """Return why such a layer's weights cannot be refitted, or None."""
    kind = f"read by a {type(layer).__name__}, expected a plain Conv2d or Linear"
    if type(layer).forward not in (nn.Conv2d.forward, nn.Linear.forward):  # a standardised weight has its own
        return kind
    weight = layer._parameters.get("weight")
    if weight is None or is_parametrized(layer) or getattr(layer, "groups", 1) > 1:
        return "read by a grouped convolution" if getattr(layer, "groups", 1) > 1 else kind
    return "its reader shares the weight of another layer" if uses[id(weight)] > 1 else None


def _reader(layer: nn.Module, member: Member, group: Group) -> Reader:
    columns = layer.get_parameter("weight")[0].numel() // len(member.roots)
    roots_D = member.roots.repeat_interleave(columns)
    return Reader(member.layer, group.name, torch.argsort(roots_D, stable=True).view(group.num_channels, -1))


def _calls(model: nn.Module, names: set[str], call: Call) -> list[str]:
    """Return the layers of these names as they run, each as often as it does."""
    private, found = PrivateModel(model), list[str]()

    def note(name: str, *_: object) -> None:
        found.append(name)

    for name in sorted(names):
        private.modules[name].register_forward_pre_hook(partial(note, name))
    private.run(call, torch.no_grad())
    return found
