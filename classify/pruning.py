"""Pruning a classifier together with its card, which names the new widths."""

import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from classify.checkpoint import ModelCard
from prune.choose.criteria import Criterion
from prune.choose.recipe import Recipe
from prune.cut.spec import PruneSpec
from prune.pruning import Pruned, prune_model

__all__ = ["prune_classifier"]


def prune_classifier(
    net: nn.Module,
    card: ModelCard,
    recipe: Recipe | float | None = None,
    criterion: Criterion | str | None = None,
    **fields: Any,
) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim classifier, its card, and what was done; the given network is not changed.

    The card's specification counts from the dense classifier, also where `net` was slim already.

    Args:
        net: A classifier.
        card: Its card.
        recipe: What is cut; a number is the `prune_ratio` of a recipe whose other fields are given by name.
        criterion: An object made on `net`, in place of the recipe's; or the recipe's by name.
        fields: Those of `Recipe`, where none is given.

    Raises:
        RequestError: If the recipe does not fit.
    """
    side = card.preprocessing.image_hw[0]
    pruned = prune_model(net, (torch.zeros(1, 3, side, side),), recipe, criterion=criterion, **fields)
    spec = pruned.spec.after(card.prune_spec or PruneSpec({}))
    slim = replace(card.backbone, widths=spec.widths())
    return pruned.model, replace(card, backbone=slim, spec=json.loads(spec.to_json())), pruned
