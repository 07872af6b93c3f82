"""The cost of a slim model for any numbers of kept channels, without building it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune.cost import Cost
from prune.groups import Group
from prune.spec import layer_of, layer_widths

__all__ = ["Forecast"]


class Forecast:
    """Knows, for every layer, how many channels are left when a group keeps its best k.

    Args:
        model: The dense model.
        groups: Those that may be cut.
        scores: Group name -> score per channel; the best stay longest.
        dense: Cost of the dense model.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], scores: Mapping[str, Tensor], dense: Cost) -> None:
        self._dense = dense
        self._lost: dict[tuple[str, str], list[tuple[str, list[int]]]] = {}
        for group in groups:
            rank = torch.sort(scores[group.name], descending=True, stable=True).indices.argsort()
            for member in group.members:
                lost = _lost_by_number_kept(rank[member.roots], group.num_channels)
                self._lost.setdefault((member.layer, member.side), []).append((group.name, lost))
        self._layers = {name: layer_of(model, name) for name, _ in self._lost}

    def cost(self, kept: Mapping[str, int]) -> dict[str, int]:
        """Return `macs`, `params` and `activations` with `kept` channels of each group (all, if it is not named)."""
        macs, params = self._dense.macs, self._dense.params
        activations = sum(layer.activations for layer in self._dense.layers.values())
        for name, layer in self._layers.items():
            has_in, has_out = layer_widths(layer)
            num_in, num_out = self._left(name, "in", has_in, kept), self._left(name, "out", has_out, kept)
            if not isinstance(layer, _ConvNd | nn.Linear):
                params -= _num_parameters(layer) // has_out * (has_out - num_out)
                continue
            if getattr(layer, "groups", 1) > 1:
                num_in = has_in  # of a grouped convolution whole groups go: what one output reads stays
            before, after = has_in * has_out, num_in * num_out
            params -= layer.weight.numel() // before * (before - after) + (layer.bias is not None) * (has_out - num_out)
            if name in self._dense.layers:
                cost = self._dense.layers[name]
                macs -= cost.macs * (before - after) // before
                activations -= cost.activations // has_out * (has_out - num_out)
        return {"macs": macs, "params": params, "activations": activations}

    def _left(self, layer: str, side: str, num: int, kept: Mapping[str, int]) -> int:
        lost = self._lost.get((layer, side), ())
        return num - sum(by_number[kept[group]] for group, by_number in lost if group in kept)


def _lost_by_number_kept(ranks: Tensor, num_channels: int) -> list[int]:
    """Return, for k = 0 .. num_channels, how many places go when the channels of rank k and above go."""
    going = torch.bincount(ranks, minlength=num_channels).flip(0).cumsum(0).flip(0)
    return [*going.tolist(), 0]


def _num_parameters(layer: nn.Module | nn.Parameter) -> int:
    return layer.numel() if isinstance(layer, nn.Parameter) else sum(p.numel() for p in layer.parameters())
