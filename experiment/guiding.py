"""`espalier prune guide`: prune configs for a network, guided by what another pruned one keeps, and their baselines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from classify.backbones import Architecture, build_classifier, check_backbone, default_side
from command.files import written_atomically
from experiment.prune_show import report_of
from prune.cost import cost_of
from prune.explain import explain
from prune.guide import By, guided_ratios, random_widths
from prune.pruning import prune_model

__all__ = ["CONFIGS", "Guide", "guide_for", "guide_table", "write_guide"]

CONFIGS = ("guided.py", "uniform.py", "random.py")
"""What `write_guide` writes into its folder."""


@dataclass(frozen=True)
class Guide:
    """A network's guided recipe and its baselines, each with the MACs that it leaves."""

    backbone: str
    image_side: int
    dense_macs: int
    recipes: dict[str, dict[str, Any]]
    """Name of a config -> its keys."""
    macs: dict[str, int]
    """Name of a config -> MACs of what it leaves."""


def guide_for(
    subject: str,
    backbone: str,
    by: By = "position",
    num_classes: int = 10,
    image_side: int | None = None,
    seed: int = 0,
) -> Guide:
    """Return what a pruned network says of another one, with a uniform and a random network of as many MACs.

    Args:
        subject: As for `report_of`: a preset or a model file of the pruned network.
        backbone: The other network, by its name; its weights do not count.
        by: What shares are averaged over; see `prune.guide`.
        num_classes: Of the other network.
        image_side: Of its images, in pixels; None for those of its published weights.
        seed: Of the random network.

    Raises:
        RequestError: If nothing was cut, or the stages of the two networks do not correspond.
    """
    source = report_of(subject, None, None, None).explanation.layers
    side = image_side or default_side(check_backbone(backbone))
    dense = build_classifier(Architecture(backbone, num_classes)).eval()
    example = (torch.zeros(1, 3, side, side),)
    target = explain(dense, dense, example, {}).layers
    guided: dict[str, Any] = {"prune_ratio": 0.0, "ratios": guided_ratios(source, target, by)}
    macs = _macs(dense, example, guided)
    widths = random_widths(dense, example, macs, seed)
    recipes = {
        "guided.py": guided,
        "uniform.py": {"max_macs": macs},
        "random.py": {"prune_ratio": 0.0, "widths": widths},
    }
    found = {name: macs if name == "guided.py" else _macs(dense, example, one) for name, one in recipes.items()}
    return Guide(backbone, side, cost_of(dense, example).macs, recipes, found)


def write_guide(guide: Guide, folder: Path, subject: str) -> None:
    """Write the configs for `espalier prune`; no text of a model file is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, recipe in guide.recipes.items():
        text = _config(guide, name, recipe, subject)
        with written_atomically(folder / name) as partial:
            partial.write_text(text, "utf-8")


def guide_table(guide: Guide) -> Table:
    """Return a table of the configs and what they leave."""
    table = Table(title=f"{guide.backbone}, one image of {guide.image_side} x {guide.image_side}", show_edge=False)
    for header in ("config", "MACs", "of dense"):
        table.add_column(header, justify="left" if header == "config" else "right")
    for name, macs in guide.macs.items():
        table.add_row(name, f"{macs:,}", f"{macs / guide.dense_macs:.1%}")
    return table


def _macs(dense: nn.Module, example: tuple[torch.Tensor], recipe: dict[str, Any]) -> int:
    return cost_of(prune_model(dense, example, **recipe, verify=False).model, example).macs


_FIRST = {
    "guided.py": "Guided pruning: each stage keeps the average share that another pruned network keeps there.",
    "uniform.py": "The baseline of guided.py beside it: as many MACs, the same share of every layer.",
    "random.py": "The baseline of guided.py beside it: at most as many MACs, a random share of every layer.",
}


def _config(guide: Guide, name: str, recipe: dict[str, Any], subject: str) -> str:
    share = f"{guide.macs[name] / guide.dense_macs:.1%}"
    lines = [
        f'"""{_FIRST[name]}',
        "",
        "Source:  Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, section 5",
        "Run:     espalier prune THIS_FILE MODEL",
        f"Expects: MODEL is a classifier, {guide.backbone}",
        f"Result:  leaves {guide.macs[name]:,} MACs, {share}, of an image of {guide.image_side} pixels; not measured",
        '"""',
        "",
        f"# guided by {json.dumps(subject)}",
    ]
    for key, value in {**recipe, "round_to": 1}.items():
        if isinstance(value, dict):
            lines += [f"{key} = {{", *(f"    {json.dumps(pattern)}: {one!r}," for pattern, one in value.items()), "}"]
        else:
            lines.append(f"{key} = {value!r}")
    return "\n".join(lines) + "\n"
