"""Prunes any part of a detector, and writes the new widths to its config."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from classify.checkpoint import ModelCard
from command.errors import RequestError
from detect.found_alike import check_finds_the_same
from detect.model import build_detector, config_of
from detect.traced import PARTS, TracedDetector, detector_cost, example_images
from detect.trunk import TrunkBackbone
from prune.choose.criteria import Criterion
from prune.choose.recipe import Recipe, resolved
from prune.cut.spec import PruneSpec
from prune.cut.surgery import masked_model, slim_model
from prune.follow.layers import is_producer
from prune.pruning import Pruned, prune_model

__all__ = ["in_detector", "prune_detector", "spec_in_detector"]

_OWN_BACKBONE, _BACKBONE = "backbone.net.", "backbone."


Pruner = Callable[..., Pruned]
"""Called like `prune.prune_model`."""


def prune_detector(
    detector: nn.Module,
    card: ModelCard,
    recipe: Recipe | float | None = None,
    criterion: Criterion | str | None = None,
    *,
    parts: Sequence[str] = ("backbone",),
    verify: bool = True,
    pruner: Pruner = prune_model,
    **fields: Any,
) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim detector, its card, and the pruning result; the given detector is not changed.

    Groups are found in the whole detector, so that layers that read a part's channels are cut with it: the neck's
    inputs with the stages, the heads' inputs with the neck. By default only the backbone is cut, as in the orderings
    that prune a classifier.

    Args:
        detector: mmdet's detector, dense or slim.
        card: Its card.
        recipe: What to cut; a number is the `prune_ratio` of a recipe whose other fields are given by name. Patterns
            use the classifier's names for the backbone's layers, and the detector's for others (`neck.*`). A limit is
            on the whole detector, for one image of its size.
        criterion: An object made for `detector`, instead of the recipe's; or the recipe's by name.
        parts: The parts to cut, of `PARTS`.
        verify: As for `prune.prune_model`.
        pruner: Another function that is called like `prune.prune_model`, such as a `prune.refit_model` with its images.
        fields: Fields of `Recipe`, if no recipe is given.

    Raises:
        RequestError: If a part is unknown, or the recipe does not fit.
    """
    for name in parts:
        if name not in PARTS:
            raise RequestError(f"parts: unknown, got {name!r}; expected any of {list(PARTS)}")
    given, measured = resolved(recipe, criterion, fields)
    traced = TracedDetector(detector)
    recipe = in_detector(given, parts, traced)
    pruned = pruner(
        traced,
        example_images(),
        recipe=recipe,
        **({"criterion": measured} if measured else {}),
        dense_cost=detector_cost(detector, card) if recipe.limit else None,
        verify=verify,
    )
    pruned = _with_parts_named(pruned, parts)
    slim, slim_card = _rebuilt(detector, card, pruned)
    if not card.backbone.name and verify and not recipe.norm_widths:
        _check_slim(detector, slim, pruned.spec)
    return slim, slim_card, pruned


def _with_parts_named(pruned: Pruned, parts: Sequence[str]) -> Pruned:
    """Return the result with the part as the reason why its layers were skipped, not the pattern made of it."""
    untouched = {
        f"skipped by the recipe ({_layers(part)})": f"{part} is not among the parts to cut"
        for part in PARTS
        if part not in parts
    }
    decisions = tuple(replace(d, reason=untouched.get(d.reason or "", d.reason)) for d in pruned.decisions)
    return replace(pruned, decisions=decisions)


def _check_slim(detector: nn.Module, slim: nn.Module, spec: PruneSpec) -> None:
    """Raise RequestError if mmdet predicts otherwise with the slim detector than with the masked one."""
    try:
        check_finds_the_same(masked_model(detector, spec), slim)
    except ValueError as error:
        raise RequestError(
            f"{type(detector).__name__}: cannot be pruned so, the slim detector finds otherwise than the masked "
            f"one, got {error}; expected the same, leave out of parts what it reads in a way of its own"
        ) from error


def in_detector(recipe: Recipe, parts: Sequence[str], detector: TracedDetector) -> Recipe:
    """Return a recipe with its patterns in a detector's names, which skips the parts that are not cut.

    Raises:
        RequestError: If the recipe has a ratio or width for a layer in a part that is not cut.
    """
    prefix = _OWN_BACKBONE if isinstance(detector.backbone, TrunkBackbone) else _BACKBONE
    for key in ("ratios", "widths"):
        for pattern in (_layer_in_detector(pattern, prefix) for pattern in getattr(recipe, key)):
            part = pattern.split(".")[0]
            if part not in parts:
                raise RequestError(f"{key}[{pattern!r}]: in a part that is not cut, got {part}; add it to parts")
    has = {name.split(".")[0] for name, layer in detector.named_modules() if is_producer(layer)}
    whole = (_layers(part) for part in PARTS if part in has and part not in parts)
    return replace(
        recipe,
        skip=(*(_layer_in_detector(pattern, prefix) for pattern in recipe.skip), *whole),
        unused=(*recipe.unused, *(f"{head}.*" for head in detector.left_out)),
        ratios={_layer_in_detector(pattern, prefix): ratio for pattern, ratio in recipe.ratios.items()},
        widths={_layer_in_detector(pattern, prefix): width for pattern, width in recipe.widths.items()},
    )


def _layers(part: str) -> str:
    """Return the pattern of a part's layers; the width that an extractor of regions has is the neck's."""
    return "roi_head.*_head.*" if part == "roi_head" else f"{part}.*"


def _layer_in_detector(pattern: str, prefix: str) -> str:
    """Return a pattern in the detector's names; one without a part as prefix is for the backbone's network."""
    return pattern if pattern.startswith(tuple(f"{part}." for part in PARTS)) else prefix + pattern


def _rebuilt(detector: nn.Module, card: ModelCard, pruned: Pruned) -> tuple[nn.Module, ModelCard]:
    """Return the slim detector and its card, whose spec counts from the dense detector."""
    slim, spec = slim_model(detector, pruned.spec), pruned.spec.after(spec_in_detector(card))
    slim.load_state_dict(pruned.model.state_dict(), strict=False)  # weights may be refitted; it lacks some heads
    if not card.backbone.name:
        assert not spec.removed_blocks, "no method that removes blocks acts on detectors of mmdet's own parts"
        return slim.eval(), replace(card, widths=spec.widths(), spec=json.loads(spec.to_json()))
    in_backbone = spec.under(_OWN_BACKBONE)
    assert len(in_backbone.removed_blocks) == len(spec.removed_blocks), "blocks are removed from the backbone alone"
    backbone = card.backbone.cut_by(in_backbone)
    outside = {name: cut for name, cut in spec.layers.items() if not name.startswith(_OWN_BACKBONE)}
    if all(cut.kept_out is None for cut in outside.values()):
        outside = {}  # the neck's inputs follow the backbone
    written = json.loads(PruneSpec({**in_backbone.layers, **outside}, in_backbone.removed_blocks).to_json())
    slim_card = replace(card, backbone=backbone, widths=PruneSpec(outside).widths(), spec=written)
    if card.is_foreign:
        return slim.eval(), slim_card
    built = build_detector(config_of(slim_card))
    built.load_state_dict(slim.state_dict())
    return built, slim_card


def spec_in_detector(card: ModelCard) -> PruneSpec:
    """Return what made the detector slim, in its own names; empty for a dense one."""
    spec = card.prune_spec or PruneSpec({})
    prefix = _OWN_BACKBONE if card.backbone.name else _BACKBONE
    layers, blocks = spec.layers.items(), spec.removed_blocks.items()
    return PruneSpec(
        {_layer_in_detector(name, prefix): cut for name, cut in layers},
        {_layer_in_detector(block, prefix): branch for block, branch in blocks},
    )
