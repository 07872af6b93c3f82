"""Commands for a model file of either kind, classifier or detector: prune it, export it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from classify.checkpoint import ModelCard, load_classifier, read_card, save_model
from classify.commands import provenance
from classify.data import MEAN, STD
from classify.pruning import prune_classifier
from detect import load_detector, save_detector
from detect.fixed_shape import FixedShapeDetector
from detect.pruning import prune_detector
from experiment.config import PruneConfig
from experiment.measuring import write_deployment
from prune import Cost, cost_of

__all__ = ["export_file", "prune_file", "prune_table"]


def prune_file(model: Path, config: PruneConfig, out: Path) -> dict[str, Any]:
    """Write the slim model file.

    Raises:
        ValueError: If the model is slim already, or a pattern matches no layer of it.

    Returns:
        `kind`, `macs` and `params` with those of the dense model, and `groups`: layers, channels and reason of each.
    """
    card = read_card(model)
    if card.backbone.widths:
        raise ValueError(f"{model}: slim already; expected a dense model to prune")
    is_detector = card.kind == "detector"
    dense, card = load_detector(model) if is_detector else load_classifier(model)
    if is_detector:
        slim, slim_card, pruned = prune_detector(dense, card, parts=config.parts, **config.options())
    else:
        slim, slim_card, pruned = prune_classifier(dense, card, **config.options())
    before, after = _cost(dense, card), _cost(slim, slim_card)
    figures = {
        "dense_macs": before.macs,
        "macs": after.macs,
        "mac_reduction": before.macs / after.macs,
        "dense_params": before.params,
        "params": after.params,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save = save_detector if is_detector else save_model
    save(out, slim, replace(slim_card, provenance=provenance(config, model, figures)))
    return {"kind": card.kind, **figures, "groups": [asdict(decision) for decision in pruned.decisions]}


def prune_table(figures: dict[str, Any]) -> Table:
    """Return the groups that `prune_file` tells of as a table, the costs below it."""
    costs = [f"{name}: {figures[f'dense_{name}']:,} before, {figures[name]:,} after" for name in ("macs", "params")]
    table = Table("layers", title="Channels cut together", caption="\n".join(costs))
    for header in ("before", "after"):
        table.add_column(header, justify="right")
    table.add_column("why untouched")
    for group in figures["groups"]:
        table.add_row(
            ", ".join(group["layers"]), str(group["num_channels"]), str(group["num_kept"]), group["reason"] or ""
        )
    return table


def export_file(model: Path, folder: Path, batch: int) -> dict[str, Any]:
    """Write `model.onnx` and `deploy.json` into `folder`: boxes of a detector, class scores of a classifier.

    Returns:
        How it compares with PyTorch on random images; see `write_deployment`.
    """
    if read_card(model).kind == "detector":
        detector, card = load_detector(model)
        graph = FixedShapeDetector(detector, card.preprocessing["image_size_hw"])
        examples = [dict(zip(graph.input_names, graph.example_inputs(batch), strict=True)) for _ in range(4)]
        return write_deployment(graph, examples, graph.output_names, card, model.name, folder)
    net, card = load_classifier(model)
    images = torch.rand(batch, 3, card.preprocessing["image_size"], card.preprocessing["image_size"]) * 255
    scores = nn.Sequential(_normalization(), net).eval()
    return write_deployment(scores, [{"image": images}], ("scores",), card, model.name, folder)


def _cost(model: nn.Module, card: ModelCard) -> Cost:
    if card.kind == "detector":
        graph = FixedShapeDetector(model, card.preprocessing["image_size_hw"])
        return cost_of(graph, graph.example_inputs())
    side = card.preprocessing["image_size"]
    return cost_of(model, (torch.zeros(1, 3, side, side),))


def _normalization() -> nn.Module:
    """Return ImageNet's normalisation as a layer: BatchNorm with fixed statistics is just that."""
    layer = nn.BatchNorm2d(3, eps=0.0, affine=False)
    layer.running_mean, layer.running_var = torch.tensor(MEAN), torch.tensor(STD).square()
    return layer
