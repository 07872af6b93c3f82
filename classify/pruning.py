"""Pruning a classifier together with its card, which names the new widths."""

import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from classify.checkpoint import ModelCard
from prune import Pruned, prune_model

__all__ = ["prune_classifier"]


def prune_classifier(
    net: nn.Module, card: ModelCard, prune_ratio: float | None = None, **options: Any
) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim classifier, its card, and what was done; the given network is not changed.

    Args:
        net: A dense classifier.
        card: Its card.
        prune_ratio: Share of channels removed, [0, 1); None where the options hold a limit.
        options: As for `prune.prune_model`; a criterion that needs data is an object made on `net`.

    Raises:
        ValueError: If the classifier is slim already, or an option does not fit.
    """
    if card.backbone.widths:
        raise ValueError("classifier: slim already; expected a dense one to prune")
    side = card.preprocessing["image_size"]
    pruned = prune_model(net, (torch.zeros(1, 3, side, side),), prune_ratio, **options)
    slim = replace(card.backbone, widths=pruned.spec.widths())
    return pruned.model, replace(card, architecture=slim.to_dict(), spec=json.loads(pruned.spec.to_json())), pruned
