"""Limits of an experiment: shares of the dense classifier's cost, as widths that every ordering cuts to.

A limit on the detector's own cost would be another one than on the classifier's, and the orderings would not end with
the same network. So the widths are those that the limit gives in the classifier, and detectors are cut to them too.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from pydantic_core import to_jsonable_python

from classify.backbones import Architecture, build_classifier
from command.errors import RequestError
from experiment.cuts import Pruning
from prune.choose.recipe import Recipe
from prune.cost import cost_of
from prune.pruning import prune_model

__all__ = ["at_limit"]


def at_limit(pruning: Pruning, arch: Architecture, side: int) -> Pruning:
    """Return the recipe with widths in the place of its limit; as it is, if it has none.

    Args:
        pruning: One of `Pruning.recipes`.
        arch: The dense classifier.
        side: Height and width in pixels of the images that costs are counted for.

    Raises:
        RequestError: If the limit cannot be reached, or the recipe does not fit the network.
    """
    if pruning.kept is None:
        return pruning
    names = ("ratios", "skip", "min_channels", "round_to", "within_groups", "select_channels", "norm_widths")
    settings = {name: getattr(pruning, name) for name in names}
    network = arch.name, arch.num_classes, arch.base_channels
    try:
        widths = _widths(network, side, *pruning.kept, json.dumps(to_jsonable_python(settings)))
    except RequestError as error:
        raise RequestError("kept_{}: {:g} of the dense network's: ".format(*pruning.kept) + str(error)) from error
    return replace(pruning, ratios={}, round_to=1, widths=dict(widths))


@cache  # every plan asks again, and a large network takes seconds
def _widths(
    network: tuple[str, int, int], side: int, cost: str, share: float, settings: str
) -> tuple[tuple[str, int], ...]:
    """Return the groups that are cut, and the channels that they keep."""
    net, example = build_classifier(Architecture(*network)).eval(), (torch.zeros(1, 3, side, side),)
    limit = int(share * getattr(cost_of(net, example), cost))
    fields: dict[str, Any] = {f"max_{cost}": limit, **json.loads(settings)}
    pruned = prune_model(net, example, Recipe(**fields), verify=False)
    return tuple((one.group, one.num_kept) for one in pruned.decisions if one.num_kept != one.num_channels)
