"""What every finished detector goes through: one exported graph, its mAP, its costs, its time."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from deploy import (
    OnnxRunner,
    measure,
    onnx_from_module,
    random_inputs,
    record_from_measurement,
    rows_from_record,
    save_record,
)
from deploy.files import written_atomically
from deploy.graph import input_specs, load_onnx, precision_of
from deploy.record import installed_versions
from detect import load_detector
from detect.data import CocoSet, read_annotations
from detect.evaluate import aligned_detections, coco_map, coco_rows, detections_by_graph, fit_image
from detect.fixed_shape import FixedShapeDetector
from experiment.config import Latency
from experiment.stages import Figures, Report, figures_in
from experiment.steps import MODEL
from prune import cost_of

__all__ = ["DETECTIONS", "ONNX", "RECORD", "export", "measure_latency", "write_deployment"]

ONNX = "model.onnx"
DETECTIONS = "detections.json"
"""COCO result rows of the exported graph on the validation set."""
RECORD = "latency.json"

_PREPROCESSING = {
    "detector": "RGB 0..255, scaled to fit with its ratio kept, padded right and below; normalised inside",
    "classifier": "RGB 0..255, the shorter side scaled to the input's, the centre cut out; normalised inside",
}


def export(source: Path, val: CocoSet, folder: Path, progress: Report) -> Figures:
    """Write the detector in `source` as one fixed-shape ONNX file with `deploy.json`, and score that very file.

    Returns:
        `map`, `map50`, `map75` of the ONNX file on `val`, `macs` and `params` of its graph, and the largest
        differences from PyTorch by output.
    """
    detector, card = load_detector(source / MODEL)
    height, width = card.preprocessing["image_size_hw"]
    graph = FixedShapeDetector(detector, (height, width)).eval()
    images = read_annotations(val.annotations)["images"]
    with Image.open(val.images / images[0]["file_name"]) as image:
        photograph = np.asarray(image.convert("RGB"))
    inputs = {name: torch.from_numpy(value) for name, value in fit_image(photograph, (height, width))[0].items()}
    differences = write_deployment(graph, inputs, graph.output_names, card, source.name, folder)
    cost = cost_of(graph, tuple(inputs.values()))
    runner = OnnxRunner(folder / ONNX, num_threads=torch.get_num_threads())
    category_ids = [category["id"] for category in read_annotations(val.annotations)["categories"]]
    rows = []
    for i, detections in enumerate(detections_by_graph(runner.run, val, (height, width))):
        rows += coco_rows(detections, category_ids)
        progress(i + 1, len(images))
    (folder / DETECTIONS).write_text(json.dumps(rows))
    return {
        **coco_map(val.annotations, rows),
        "macs": cost.macs,
        "params": cost.params,
        "difference": differences,
    }


def write_deployment(
    graph: nn.Module,
    inputs: Mapping[str, Tensor],
    output_names: Sequence[str],
    card: ModelCard,
    source: str,
    folder: Path,
) -> dict[str, float]:
    """Write `model.onnx`, checked on the inputs, and `deploy.json` that says how to feed it.

    Args:
        graph: What `onnx_from_module` takes, its inputs and output names too.
        inputs: Example tensors by name.
        output_names: One for each tensor the graph gives.
        card: Of the model inside.
        source: What the model is called.
        folder: Created.

    Returns:
        The largest differences from PyTorch by output.
    """
    align = aligned_detections if card.kind == "detector" else None
    differences = onnx_from_module(graph, inputs, folder / ONNX, output_names, align=align)
    model = load_onnx(folder / ONNX)
    description = {
        "inputs": {name: list(spec.shape) for name, spec in input_specs(model).items()},
        "preprocessing": _PREPROCESSING[card.kind],
        "classes": card.classes,
        "precision": precision_of(model),
        "versions": installed_versions(),
        "sha256": {ONNX: hashlib.sha256((folder / ONNX).read_bytes()).hexdigest()},
        "model": source,
    }
    with written_atomically(folder / "deploy.json") as path:
        path.write_text(json.dumps(description, indent=1))
    return differences


def measure_latency(exports: Mapping[str, Path], settings: Latency, folder: Path, progress: Report) -> Figures:
    """Time every exported file alternately in one process; the first is the reference. Writes the record.

    Returns:
        {"rows": by name, latency and speedup with its interval}.
    """
    runners = {name: OnnxRunner(path / ONNX, num_threads=settings.num_threads) for name, path in exports.items()}
    inputs = random_inputs(next(iter(runners.values())).inputs)
    macs = {name: figures_in(path)["macs"] for name, path in exports.items()}
    ticks = itertools.count(1)
    measurement = measure(
        runners,
        inputs,
        warmup=settings.warmup,
        rounds=settings.rounds,
        on_round=lambda: progress(next(ticks), settings.rounds + settings.warmup),
    )
    record = record_from_measurement(measurement, runners, inputs, macs=macs, config=settings.model_dump())
    save_record(record, folder / RECORD)
    return {"rows": {str(row["name"]): row for row in rows_from_record(record)}}
