"""Pruning a detector: any of its parts is cut, and the config names the new widths."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from detect.model import DetectorSettings, build_detector, detector_config
from prune import Cost, Pruned, cost_of, prune_model, slim_model
from prune.recipe import LIMITS

__all__ = ["PARTS", "TracedDetector", "layer_in_detector", "prune_detector"]

PARTS = ("backbone", "neck", "rpn_head", "roi_head")
"""Parts of a Faster R-CNN that can be cut."""

_BACKBONE = "backbone.net."


def prune_detector(
    detector: nn.Module,
    card: ModelCard,
    prune_ratio: float | None = None,
    *,
    parts: Sequence[str] = ("backbone",),
    **options: Any,
) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim detector, its card, and what was done; the given detector is not changed.

    Groups are found in the whole detector, so that what reads a part's channels is cut with them: the neck's inputs
    with the stages, the heads' inputs with the neck. By default the backbone alone is cut: what the orderings that
    prune a classifier leave whole stays whole here too.

    Args:
        detector: mmdet's Faster R-CNN around a dense `TrunkBackbone`.
        card: Its card.
        prune_ratio: Share of channels removed, [0, 1); None where the options hold a limit.
        parts: Those of `PARTS` that are cut.
        options: As for `prune.prune_model`; a criterion that needs data is an object made on `detector`, whose layers
            have the names that are traced. In patterns the backbone's layers go by the classifier's names, others by
            the detector's (`neck.*`). A limit is on the whole detector, for one image of its size.

    Raises:
        ValueError: If the detector is slim already, a part is unknown, or an option does not fit.
    """
    if card.backbone.widths or "widths" in (card.detector or {}):
        raise ValueError("detector: slim already; expected a dense one to prune")
    for name in parts:
        if name not in PARTS:
            raise ValueError(f"parts: unknown, got {name!r}; expected any of {list(PARTS)}")
    whole = [f"{part}.*" for part in PARTS if part not in parts]
    patterns: dict[str, Any] = {
        key: _in_detector(options[key]) for key in ("skip", "ratios", "widths") if key in options
    }
    for key in patterns.keys() - {"skip"}:
        _check_cut(key, patterns[key], parts)
    options = {**options, **patterns, "skip": (*patterns.get("skip", ()), *whole)}
    limited = any(options.get(limit) is not None for limit in LIMITS)
    pruned = prune_model(
        TracedDetector(detector),
        (torch.zeros(1, 3, 64, 64),),
        prune_ratio,
        dense_cost=_cost(detector, card) if limited else None,
        **options,
    )
    untouched = {f"skipped as asked ({pattern})": f"{pattern[:-2]} is not among the parts to cut" for pattern in whole}
    decisions = tuple(replace(d, reason=untouched.get(d.reason or "", d.reason)) for d in pruned.decisions)
    pruned = replace(pruned, decisions=decisions)
    return (*_rebuilt(detector, card, pruned), pruned)


class TracedDetector(nn.Module):
    """A detector's layers without its boxes, by the same names: what is traced, and what costs are counted on.

    Boxes depend on the data, so every RoI reads the sum of the levels, pooled to the extractor's size; channels
    meet just as in the detector.

    Args:
        detector: mmdet's Faster R-CNN; its modules are shared.
        num_proposals: RoIs that the head looks at.
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


def _in_detector(patterns: Any) -> Any:
    if isinstance(patterns, Mapping):
        return {layer_in_detector(pattern): value for pattern, value in patterns.items()}
    return tuple(layer_in_detector(pattern) for pattern in patterns)


def layer_in_detector(pattern: str) -> str:
    """Return a pattern by the detector's names; one that begins with no part is meant for the backbone's network."""
    return pattern if pattern.startswith(tuple(f"{part}." for part in PARTS)) else _BACKBONE + pattern


def _check_cut(key: str, patterns: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Raise ValueError if a layer is given a ratio or width of its own in a part that stays whole."""
    for pattern in patterns:
        part = pattern.split(".")[0]
        if part not in parts:
            raise ValueError(f"{key}[{pattern!r}]: in a part that stays whole, got {part}; expected it among parts")


def _cost(detector: nn.Module, card: ModelCard) -> Cost:
    settings = DetectorSettings(**card.preprocessing["settings"])
    image = torch.zeros(1, 3, *settings.image_size_hw)
    return cost_of(TracedDetector(detector, settings.num_proposals), (image,))


def _rebuilt(detector: nn.Module, card: ModelCard, pruned: Pruned) -> tuple[nn.Module, ModelCard]:
    """Return the slim detector as its config builds it, and its card."""
    in_backbone = pruned.spec.under(_BACKBONE)
    backbone = replace(card.backbone, widths=in_backbone.widths())
    config = detector_config(backbone, len(card.classes), DetectorSettings(**card.preprocessing["settings"]))
    outside = {name: cut for name, cut in pruned.spec.layers.items() if not name.startswith(_BACKBONE)}
    if all(cut.kept_out is None for cut in outside.values()):
        outside = {}  # the neck's inputs follow the backbone
    else:
        widths = {name: list(width) for name, width in replace(pruned.spec, layers=outside).widths().items()}
        config = {**config, "type": "SlimFasterRCNN", "widths": widths}
    slim = build_detector(config)
    slim.load_state_dict(slim_model(detector, pruned.spec).state_dict())
    spec = json.loads(replace(in_backbone, layers={**in_backbone.layers, **outside}).to_json())
    return slim, replace(card, architecture=backbone.to_dict(), detector=config, spec=spec)
