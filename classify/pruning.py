"""Pruning a classifier together with its card, which names the new widths."""

import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from classify.checkpoint import ModelCard
from prune.choose.criteria import Criterion
from prune.choose.recipe import Recipe
from prune.cost import cost_of
from prune.cut.spec import PruneSpec
from prune.learn.magnitude import nonzero_masks, sparse_macs
from prune.pruning import Pruned, prune_model

__all__ = ["example_of", "prune_classifier", "sparse_figures", "with_card"]


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
    return with_card(card, prune_model(net, example_of(card), recipe, criterion=criterion, **fields))


def example_of(card: ModelCard) -> tuple[torch.Tensor]:
    """Return an image of the classifier's size."""
    return (torch.zeros(1, 3, *card.preprocessing.image_hw),)


def sparse_figures(net: nn.Module, card: ModelCard) -> dict[str, int]:
    """Return the costs of a classifier with masked weights, and without them; nothing for one that has no zero weight.

    `macs` and `params` are those of the file, and what a dense kernel computes. `nonzero_macs` and `nonzero_params`
    count what is not zero: no time is saved by it.
    """
    if not (masks := nonzero_masks(net)):
        return {}
    cost, zeros = cost_of(net, example_of(card)), sum(int((~mask).sum()) for mask in masks.values())
    return {
        "macs": cost.macs,
        "params": cost.params,
        "nonzero_macs": sparse_macs(net, masks, example_of(card)),
        "nonzero_params": cost.params - zeros,
    }


def with_card(card: ModelCard, pruned: Pruned) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim classifier, its card, and what was done.

    Args:
        card: Of the classifier that was pruned.
        pruned: What came of it.
    """
    spec = pruned.spec.after(card.prune_spec or PruneSpec({}))
    return pruned.model, replace(card, backbone=card.backbone.cut_by(spec), spec=json.loads(spec.to_json())), pruned
