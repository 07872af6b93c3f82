"""Pruning inside a detector: the backbone is cut, the neck's inputs follow, and the config names the new widths."""

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from detect.model import DetectorSettings, build_detector, detector_config
from prune import Decision, Pruned, prune_model, slim_model

__all__ = ["prune_detector"]

_PREFIX = "backbone.net."
_NECK = "in the neck; its own channels stay whole"


def prune_detector(
    detector: nn.Module, card: ModelCard, prune_ratio: float, **options: Any
) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim detector, its card, and what was done; the given detector is not changed.

    Groups are found on backbone and neck together, so that the neck's inputs are cut with the stages they read. The
    neck's own channels and the heads stay whole: what the classifier orderings leave whole stays whole here too.

    Args:
        detector: mmdet's Faster R-CNN around a dense `TrunkBackbone`.
        card: Its card.
        prune_ratio: Share of channels removed, [0, 1).
        options: As for `prune.prune_model`; layer names start with `backbone.net.`.
    """
    if card.backbone.widths:
        raise ValueError("detector: its backbone is slim already; expected a dense one to prune")
    part = _BackboneNeck(detector)
    skip = (*options.pop("skip", ()), "neck.*")
    pruned = prune_model(part, (torch.zeros(1, 3, 64, 64),), prune_ratio, skip=skip, **options)
    backbone_spec = pruned.spec.under(_PREFIX)
    backbone = replace(card.backbone, widths=backbone_spec.widths())
    settings = DetectorSettings(**card.preprocessing["settings"])
    config = detector_config(backbone, len(card.classes), settings)
    slim = build_detector(config)
    slim.load_state_dict(slim_model(detector, pruned.spec).state_dict())
    spec = json.loads(backbone_spec.to_json())
    decisions = [replace(d, reason=_NECK) if d.group.startswith("neck.") else d for d in pruned.decisions]
    pruned = replace(pruned, decisions=(*decisions, *_heads(detector)))
    return slim, replace(card, architecture=backbone.to_dict(), detector=config, spec=spec), pruned


def _heads(detector: nn.Module) -> list[Decision]:
    """List the layers outside the traced part, so that the report misses none."""
    return [
        Decision(name, (name,), len(layer.weight), len(layer.weight), "in a head; heads stay whole")
        for name, layer in detector.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.startswith(("backbone.", "neck."))
    ]


class _BackboneNeck(nn.Module):
    """The part of a detector that is traced; the names are the detector's own."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.get_submodule("backbone")
        self.neck = detector.get_submodule("neck")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.neck(self.backbone(images))
        return maps
