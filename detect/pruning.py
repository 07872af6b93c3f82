"""Prunes any part of a detector, and writes the new widths to its config."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from command.errors import RequestError
from detect.model import build_detector, config_of, settings_of
from prune.choose.criteria import Criterion
from prune.choose.recipe import Recipe, resolved
from prune.cost import Cost, cost_of
from prune.cut.spec import PruneSpec
from prune.cut.surgery import slim_model
from prune.pruning import Pruned, prune_model

__all__ = ["PARTS", "TracedDetector", "in_detector", "prune_detector"]

PARTS = ("backbone", "neck", "rpn_head", "roi_head")
"""Parts of a Faster R-CNN that can be cut."""

_BACKBONE = "backbone.net."


def prune_detector(
    detector: nn.Module,
    card: ModelCard,
    recipe: Recipe | float | None = None,
    criterion: Criterion | str | None = None,
    *,
    parts: Sequence[str] = ("backbone",),
    verify: bool = True,
    **fields: Any,
) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim detector, its card, and the pruning result; the given detector is not changed.

    Groups are found in the whole detector, so that layers that read a part's channels are cut with it: the neck's
    inputs with the stages, the heads' inputs with the neck. By default only the backbone is cut, as in the orderings
    that prune a classifier.

    Args:
        detector: mmdet's Faster R-CNN around a `TrunkBackbone`, dense or slim.
        card: Its card.
        recipe: What to cut; a number is the `prune_ratio` of a recipe whose other fields are given by name. Patterns
            use the classifier's names for the backbone's layers, and the detector's for others (`neck.*`). A limit is
            on the whole detector, for one image of its size.
        criterion: An object made for `detector`, instead of the recipe's; or the recipe's by name.
        parts: The parts to cut, of `PARTS`.
        verify: As for `prune.prune_model`.
        fields: Fields of `Recipe`, if no recipe is given.

    Raises:
        RequestError: If a part is unknown, or the recipe does not fit.
    """
    for name in parts:
        if name not in PARTS:
            raise RequestError(f"parts: unknown, got {name!r}; expected any of {list(PARTS)}")
    whole = [f"{part}.*" for part in PARTS if part not in parts]
    given, measured = resolved(recipe, criterion, fields)
    recipe = in_detector(given, parts)
    pruned = prune_model(
        TracedDetector(detector),
        (torch.zeros(1, 3, 64, 64),),
        recipe,
        criterion=measured,
        dense_cost=_cost(detector, card) if recipe.limit else None,
        verify=verify,
    )
    untouched = {
        f"skipped by the recipe ({pattern})": f"{pattern[:-2]} is not among the parts to cut" for pattern in whole
    }
    decisions = tuple(replace(d, reason=untouched.get(d.reason or "", d.reason)) for d in pruned.decisions)
    pruned = replace(pruned, decisions=decisions)
    return (*_rebuilt(detector, card, pruned), pruned)


class TracedDetector(nn.Module):
    """A detector's layers without its boxes, under the same names: for tracing, and for counting costs.

    Boxes depend on the data, so here every RoI reads the sum of the levels, pooled to the extractor's size; channels
    are coupled exactly as in the detector.

    Args:
        detector: mmdet's Faster R-CNN; its modules are shared.
        num_proposals: RoIs that the head computes.
    """

    def __init__(self, detector: Any, num_proposals: int = 1) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck
        self.rpn_head, self.roi_head = detector.rpn_head, detector.roi_head
        self.num_proposals = num_proposals

    def forward(self, images: Tensor) -> list[Any]:
        """Return the outputs of the heads for images (1, 3, H, W)."""
        maps = self.neck(self.backbone(images))
        extractor: Any = self.roi_head.bbox_roi_extractor
        side = extractor.roi_layers[0].output_size
        pooled = [nn.functional.adaptive_avg_pool2d(m, side) for m in maps[: extractor.num_inputs]]
        features = torch.stack(pooled).sum(0).expand(self.num_proposals, -1, -1, -1)
        return [self.rpn_head(maps), self.roi_head.get_submodule("bbox_head")(features)]


def in_detector(recipe: Recipe, parts: Sequence[str]) -> Recipe:
    """Return a recipe with its patterns in the detector's names, which skips the parts that are not cut.

    Raises:
        RequestError: If the recipe has a ratio or width for a layer in a part that is not cut.
    """
    for key in ("ratios", "widths"):
        for pattern in map(_layer_in_detector, getattr(recipe, key)):
            part = pattern.split(".")[0]
            if part not in parts:
                raise RequestError(f"{key}[{pattern!r}]: in a part that is not cut, got {part}; add it to parts")
    whole = (f"{part}.*" for part in PARTS if part not in parts)
    return replace(
        recipe,
        skip=(*map(_layer_in_detector, recipe.skip), *whole),
        ratios={_layer_in_detector(pattern): ratio for pattern, ratio in recipe.ratios.items()},
        widths={_layer_in_detector(pattern): width for pattern, width in recipe.widths.items()},
    )


def _layer_in_detector(pattern: str) -> str:
    """Return a pattern in the detector's names; one without a part as prefix is for the backbone's network."""
    return pattern if pattern.startswith(tuple(f"{part}." for part in PARTS)) else _BACKBONE + pattern


def _cost(detector: nn.Module, card: ModelCard) -> Cost:
    settings = settings_of(card)
    image = torch.zeros(1, 3, *settings.image_size_hw)
    return cost_of(TracedDetector(detector, settings.num_proposals), (image,))


def _rebuilt(detector: nn.Module, card: ModelCard, pruned: Pruned) -> tuple[nn.Module, ModelCard]:
    """Return the slim detector, built from its config, and its card, whose spec counts from the dense detector."""
    spec = pruned.spec.after(_spec_in_detector(card))
    in_backbone = spec.under(_BACKBONE)
    backbone = replace(card.backbone, widths=in_backbone.widths())
    outside = {name: cut for name, cut in spec.layers.items() if not name.startswith(_BACKBONE)}
    if all(cut.kept_out is None for cut in outside.values()):
        outside = {}  # the neck's inputs follow the backbone
    written = json.loads(PruneSpec({**in_backbone.layers, **outside}).to_json())
    slim_card = replace(card, backbone=backbone, widths=PruneSpec(outside).widths(), spec=written)
    slim = build_detector(config_of(slim_card))
    slim.load_state_dict(slim_model(detector, pruned.spec).state_dict())
    return slim, slim_card


def _spec_in_detector(card: ModelCard) -> PruneSpec:
    """Return what made the detector slim, in its own names; empty for a dense one."""
    layers = card.prune_spec.layers if card.prune_spec else {}
    return PruneSpec({_layer_in_detector(name): cut for name, cut in layers.items()})
