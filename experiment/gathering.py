"""What of a finished run's stages is shown besides its rows: conditions, pictures, curves and notes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classify.curve import CURVE
from deploy.record import Record
from detect.annotations import read_annotations
from experiment.leaves import Leaf
from experiment.measuring import DETECTIONS
from experiment.pipeline import Plan
from experiment.stages import StageStore

__all__ = ["conditions_of", "curves_of", "notes_of", "pictures_of"]

_NUM_PICTURES = 4


def conditions_of(record: Record) -> dict[str, Any]:
    """Return how times were taken."""
    first = next(iter(record.candidates.values()))
    return {
        "device": record.device.text,
        "is_gpu": record.is_gpu,
        "runtime": f"{first.runtime} {record.versions.get(first.runtime, '')}".strip(),
        "precision": first.precision,
        "input_shape": list(first.input_shapes["image"]),
        "warmup": record.conditions.warmup,
        "rounds": record.conditions.rounds,
        "order": "alternating",
        "throttled_rounds": record.conditions.throttled_rounds,
    }


def pictures_of(plan: Plan, store: StageStore, folder: Path) -> list[dict[str, Any]]:
    """Return a few validation images with ground truth and what every detector of the first seed and target found."""
    val = plan.data.val_boxes.place
    data = read_annotations(val.annotations)
    labels = {category["id"]: label for label, category in enumerate(data["categories"])}
    first = next(iter(plan.latencies))
    found = {
        leaf.row: json.loads((store.folder(leaf.on.evaluation) / DETECTIONS).read_text())
        for leaf in plan.rows
        if leaf.seed == plan.rows[0].seed and leaf.on and leaf.on.evaluation and leaf.target == first
    }
    images = data["images"][:: max(1, len(data["images"]) // _NUM_PICTURES)][:_NUM_PICTURES]
    return [
        {
            "file": os.path.relpath(val.images / image["file_name"], folder),
            "size_hw": [image["height"], image["width"]],
            "truth": _boxes(data["annotations"], image["id"], labels),
            "detections": {name: _boxes(rows, image["id"], labels) for name, rows in found.items()},
        }
        for image in images
    ]


def _boxes(rows: list[dict[str, Any]], image_id: int, labels: Mapping[int, int]) -> list[dict[str, Any]]:
    boxes = []
    for row in rows:
        if row["image_id"] == image_id:
            x, y, w, h = row["bbox"]
            box = {"box_xyxy": [x, y, x + w, y + h], "label": labels[row["category_id"]]}
            boxes.append({**box, "score": row["score"]} if "score" in row else box)
    return boxes


def curves_of(leaf: Leaf, store: StageStore, folder: Path) -> dict[str, str]:
    """Return the curve files of its trainings; stages of earlier versions have none."""
    files = {stage.name: store.folder(stage) / CURVE for stage in leaf.chain}
    return {name: file.relative_to(folder).as_posix() for name, file in files.items() if file.is_file()}


def notes_of(plan: Plan, store: StageStore) -> list[str]:
    """Return one sentence per layer that was not pruned, with its reason."""
    untouched = {
        f"Not pruned: {decision['group']}, {decision['reason']}."
        for leaf in plan.leaves
        for stage in leaf.chain
        for decision in store.figures(stage).get("untouched", [])
    }
    return sorted(untouched)
