"""Criteria: what ranks the channels of a group. A higher score means "keep"."""

from typing import Protocol

import torch
from torch import Tensor, nn

from prune.groups import Group, has_channels

__all__ = ["CRITERIA", "Criterion", "L1Norm"]


class Criterion(Protocol):
    """Ranks channels."""

    def scores(self, model: nn.Module, group: Group) -> Tensor:
        """Return one score per channel of the group, shape (num_channels,), float; higher = keep."""


class L1Norm:
    """Sum of absolute weights of each output filter, summed over the layers that write the same channels.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, sec. 3.1. The sum over coupled layers is
    what their residual "shortcut" rule lacks; it equals the L1 norm of the concatenated filters.
    """

    def scores(self, model: nn.Module, group: Group) -> Tensor:
        """Return the L1 norm per channel, shape (num_channels,), >= 0.

        Raises:
            ValueError: If a weight is not finite.
        """
        total_C = torch.zeros(group.num_channels)
        for member in group.members:
            layer = model.get_submodule(member.layer)
            if member.side == "out" and has_channels(layer):
                weight: Tensor = layer.get_parameter("weight")
                norm_O = weight.detach().float().flatten(1).abs().sum(1).cpu()
                total_C.index_add_(0, member.roots, norm_O[member.channels])
        if not total_C.isfinite().all():
            raise ValueError(f"{group.name}: a weight is not finite; expected finite weights to rank channels by")
        return total_C


CRITERIA: dict[str, type[Criterion]] = {"l1": L1Norm}
"""Name in a config -> criterion."""
