"""Pruning a classifier together with its card, which names the new widths."""

import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from classify.checkpoint import ModelCard
from command.errors import RequestError
from prune.choose.criteria import Criterion
from prune.choose.recipe import Recipe
from prune.cut.spec import PruneSpec
from prune.pruning import Pruned, prune_model

__all__ = ["example_of", "prune_classifier", "with_card"]


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


def with_card(card: ModelCard, pruned: Pruned) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim classifier, its card, and what was done.

    Args:
        card: Of the classifier that was pruned.
        pruned: What came of it.

    Raises:
        RequestError: If it has lost residual blocks, which a model file cannot say.
    """
    if pruned.spec.removed_blocks:
        raise RequestError(
            f"{card.backbone.name}: a model file holds all blocks of its network, got one without "
            f"{', '.join(pruned.spec.removed_blocks)}; keep it with prune.save_slim"
        )
    spec = pruned.spec.after(card.prune_spec or PruneSpec({}))
    slim = replace(card.backbone, widths=spec.widths())
    return pruned.model, replace(card, backbone=slim, spec=json.loads(spec.to_json())), pruned
