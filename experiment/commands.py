"""`espalier prune` on a model file, of a classifier or a detector."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import nn

from classify.backbones import build_classifier
from classify.checkpoint import ModelCard, load_classifier, read_card, save_model
from classify.provenance import provenance
from command.errors import RequestError
from deploy.text import printable
from detect.detector_file import load_detector, save_detector
from detect.foreign import dense_of
from detect.model import build_detector, config_of
from detect.traced import detector_cost
from experiment.cuts import PruneConfig
from experiment.cutting import cut_by_config
from prune.choose.presets import PRESETS
from prune.cost import Cost, cost_of
from prune.pruning import Decision

__all__ = ["prune_file", "prune_table"]


def prune_file(model: Path, config: PruneConfig, out: Path, mmdet: Path | None = None) -> dict[str, Any]:
    """Write the slim model file.

    Args:
        model: Model file, or with `mmdet` a checkpoint of mmdet.
        config: What to cut.
        out: Written.
        mmdet: mmdet's config, for a detector of mmdet's own parts.

    Raises:
        MissingFileError: If the model, or the data that its criterion measures on, is missing.
        RequestError: If config or data do not fit the model.

    Returns:
        `kind`; `macs`, `params` and `activations` with those of the dense architecture; `num_rounded`, the channels
        that rounding to `round_to` added; and `groups`: layers, channels and reason of each.
    """
    is_detector = mmdet is not None or read_card(model).kind == "detector"
    given, card = load_detector(model, mmdet) if is_detector else load_classifier(model)
    _check_fits(model, card, config)
    (slim, slim_card, pruned), data = cut_by_config(given, card, config, model)
    dense = _dense(card, mmdet) if card.is_slim else given
    figures = {
        **_costs(_cost(dense, card), _cost(slim, slim_card)),
        "round_to": config.recipe.round_to,
        "num_rounded": pruned.num_rounded,
    }
    slim_card = replace(slim_card, provenance={**provenance(config, model, figures), "data": list(data)})
    if is_detector:
        save_detector(out, slim, slim_card, mmdet)
    else:
        save_model(out, slim, slim_card)
    return {"kind": card.kind, **figures, "groups": [_described(d, config.preset) for d in pruned.decisions]}


def prune_table(figures: dict[str, Any]) -> Table:
    """Return a table of the groups that `prune_file` returned; costs and the effect of rounding are below it."""
    caption = [
        f"{name}: {figures[f'dense_{name}']:,} before, {figures[name]:,} after"
        for name in ("macs", "params", "activations")
    ]
    step, num = figures["round_to"], figures["num_rounded"]
    if step > 1:
        caption.append(f"rounding to a multiple of {step} {'took' if num < 0 else 'added'} {abs(num)} channels")
    if all(group["num_kept"] == group["num_channels"] for group in figures["groups"]):
        caption.append("NOTHING WAS CUT: every group stays whole, for the reasons above")
    title, text = "Channels cut together", "\n".join(caption)
    table = Table(title=title, caption=text, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("layers", no_wrap=True, overflow="fold")  # reasons are wrapped first
    for header in ("before", "unrounded", "after"):
        table.add_column(header, justify="right")
    table.add_column("why untouched")
    for group in figures["groups"]:
        numbers = (group["num_channels"], group["before_rounding"], group["num_kept"])
        names = "\n".join(map(printable, group["layers"]))
        reason = printable(group["reason"] or "")
        table.add_row(Text(names), *("" if n is None else str(n) for n in numbers), Text(reason))
    return table


def _check_fits(model: Path, card: ModelCard, config: PruneConfig) -> None:
    """Raise RequestError if the model is not the dense network that the preset is for, or has no such parts."""
    if card.kind != "detector" and config.parts != ("backbone",):
        raise RequestError(f"parts: not used with a {card.kind}, got {model}; expected none")
    if config.preset:
        card.check_dense(model)
        name, base = card.backbone.name, card.backbone.base_channels
        expected = PRESETS[config.preset].backbone
        if (name, base) != (expected, 64):
            raise RequestError(
                f"preset: {config.preset} is for {expected}, got {name} with base_channels {base}; "
                f"expected {expected} with base_channels 64"
            )


def _described(decision: Decision, preset: str | None) -> dict[str, Any]:
    """Return the decision as JSON types; the reason why a preset leaves a group whole names the preset."""
    reason = decision.reason and preset and decision.reason.replace("prune_ratio 0.0", preset)
    return {**asdict(decision), "reason": reason or decision.reason}


def _costs(dense: Cost, slim: Cost) -> dict[str, Any]:
    before, after = (sum(layer.activations for layer in cost.layers.values()) for cost in (dense, slim))
    return {
        "dense_macs": dense.macs,
        "macs": slim.macs,
        "mac_reduction": dense.macs / slim.macs,
        "dense_params": dense.params,
        "params": slim.params,
        "dense_activations": before,
        "activations": after,
    }


def _dense(card: ModelCard, mmdet: Path | None) -> nn.Module:
    """Return the dense network of the architecture, with random weights."""
    if mmdet:
        return dense_of(mmdet, card)
    card = replace(card, backbone=card.backbone.dense, widths={})
    return build_detector(config_of(card)) if card.kind == "detector" else build_classifier(card.backbone)


def _cost(model: nn.Module, card: ModelCard) -> Cost:
    if card.kind == "detector":
        return detector_cost(model, card)
    side = card.preprocessing.image_hw[0]
    return cost_of(model, (torch.zeros(1, 3, side, side),))
