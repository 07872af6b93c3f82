"""The cost of a slim model for any numbers of kept channels, without building it."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prune.choose.allocate import Ranked
from prune.cost import Cost
from prune.cut.spec import Layer, layer_of, layer_widths
from prune.follow.groups import Group, Member
from prune.follow.layers import cut_dims, is_producer, weight_of

__all__ = ["Forecast"]


class Forecast:
    """Computes, for every layer, how many channels are left when a group keeps its best k.

    Args:
        model: The dense model.
        groups: Those that may be cut.
        ranked: Group name -> its channels, ranked.
        dense: Cost of the dense model.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], ranked: Mapping[str, Ranked], dense: Cost) -> None:
        self._dense = dense
        self._lost: dict[tuple[str, str], list[tuple[str, list[int]]]] = {}
        for group in groups:
            rank = ranked[group.name].order.argsort()
            for member in group.members:
                lost = _lost_by_number_kept(rank[member.roots], group.num_channels)
                self._lost.setdefault((member.layer, member.side), []).append((group.name, lost))
        layers = {name: layer_of(model, name) for name, _ in self._lost}
        self._layers = {name: (layer, *layer_widths(layer)) for name, layer in layers.items()}
        self._sizes = _sizes(layers)
        members = [member for group in groups for member in group.members if member.is_whole]
        self._within = {m.layer for m in members if _goes_within_groups(m, getattr(layers[m.layer], "groups", 1))}

    def cost(self, kept: Mapping[str, int]) -> dict[str, int]:
        """Return `macs`, `params` and `activations` with `kept` channels of each group (all, if it is not named)."""
        macs, params = self._dense.macs, self._dense.params
        activations = sum(layer.activations for layer in self._dense.layers.values())
        for name, (layer, has_in, has_out) in self._layers.items():
            num_in, num_out = self._left(name, "in", has_in, kept), self._left(name, "out", has_out, kept)
            if getattr(layer, "groups", 1) > 1 and name not in self._within:
                num_in = has_in  # where whole groups of a convolution go, what one output reads stays
            before, lost = has_in * has_out, has_in * has_out - num_in * num_out
            weights, others = self._sizes[name]
            params -= weights * lost // before + others * (has_out - num_out) // has_out
            if name in self._dense.layers:
                cost = self._dense.layers[name]
                macs -= cost.macs * lost // before
                activations -= cost.activations * (has_out - num_out) // has_out
        return {"macs": macs, "params": params, "activations": activations}

    def _left(self, layer: str, side: str, num: int, kept: Mapping[str, int]) -> int:
        lost = self._lost.get((layer, side), ())
        return num - sum(by_number[kept[group]] for group, by_number in lost if group in kept)


def _goes_within_groups(member: Member, groups: int) -> bool:
    """Return whether a grouped convolution loses channels of every group rather than whole groups."""
    roots = member.roots.view(groups, -1) if groups > 1 else member.roots[:, None]
    return bool((roots != roots[:, :1]).any())


def _lost_by_number_kept(ranks: Tensor, num_channels: int) -> list[int]:
    """Return, for k = 0 .. num_channels, how many positions are removed with the channels of rank k and above."""
    going = torch.bincount(ranks, minlength=num_channels).flip(0).cumsum(0).flip(0)
    return [*going.tolist(), 0]


def _sizes(layers: Mapping[str, Layer]) -> dict[str, tuple[int, int]]:
    """Return per layer how many parameters go with both sides and how many with outputs alone; shared: only once."""
    counted: set[nn.Parameter] = set()
    sizes = {}
    for name, layer in layers.items():
        own = (
            set(layer.parameters())
            if isinstance(layer, nn.Module)
            else {layer}
            if isinstance(layer, nn.Parameter)
            else set()
        )
        weight = {weight_of(layer)} if is_producer(layer) else {t for t in own if len(cut_dims(t)) == 2}
        sizes[name] = (_count((own & weight) - counted), _count(own - weight - counted))
        counted |= own
    return sizes


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
