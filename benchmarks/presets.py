"""Count the predefined slim networks of the literature, for comparison with the published figures.

Run:     python benchmarks/presets.py RECORD.json
Writes:  a record of the table in docs/pruning.md; `macs` and `params` as `prune.cost_of` counts them
"""

import json
import sys
from pathlib import Path

import torch

from classify.backbones import Architecture, build_classifier
from deploy.record import git_commit
from prune import cost_of, prune_model
from prune.choose.presets import PRESETS, Preset

COLUMNS = ["preset", "backbone", "params (M)", "MACs (G)", "MAC reduction", "published params", "published MACs"]


def row(entry: Preset) -> list[str]:
    """Return the preset's row: built with random weights, counted at its own image size."""
    dense = build_classifier(Architecture(entry.backbone, 1000 if entry.image_side == 224 else 10))
    image = torch.zeros(1, 3, entry.image_side, entry.image_side)
    slim = prune_model(dense, (image,), 0.0, widths=entry.kept, select_channels=entry.selects_channels).model
    before, after = (cost_of(model, (image,)) for model in (dense, slim))
    return [
        entry.name,
        entry.backbone,
        f"{after.params / 1e6:.3f}",
        f"{after.macs / 1e9:.4f}",
        f"{before.macs / after.macs:.2f}",
        entry.published_params or "",
        entry.published_macs or "",
    ]


if __name__ == "__main__":
    record = {
        "kind": "presets",
        "commit": git_commit(),
        "columns": COLUMNS,
        "table": [row(e) for e in PRESETS.values()],
    }
    Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n")
