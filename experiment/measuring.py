"""What every finished detector goes through: one exported graph, its mAP, its costs, its time."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deploy import (
    Arrays,
    Measurement,
    OnnxRunner,
    Runner,
    TensorSpec,
    measure,
    random_inputs,
    record_from_measurement,
    rows_from_record,
    save_record,
)
from detect import load_detector
from detect.data import CocoSet, read_annotations
from detect.evaluate import coco_map, coco_rows, detections_by_graph, fitted_images
from detect.fitting import Graph
from detect.fixed_shape import FixedShapeDetector
from detect.reference import reference_of
from experiment.config import Timing
from experiment.deployed.folder import ONNX, write_deployment
from experiment.stages import Figures, Report, figures_in
from experiment.steps import MODEL
from prune import cost_of

__all__ = ["DETECTIONS", "RECORD", "detected_rows", "export", "measure_latency", "measure_with_progress"]

DETECTIONS = "detections.json"
"""COCO result rows of the exported graph on the validation set."""
RECORD = "latency.json"

_NUM_COMPARED = 8


def export(source: Path, val: CocoSet, folder: Path, progress: Report) -> Figures:
    """Write the detector in `source` as one fixed-shape ONNX file with `deploy.json`, and score that very file.

    Returns:
        `map`, `map50`, `map75` of the ONNX file on `val`, `macs` and `params` of its graph, and how many of PyTorch's
        detections on a few images of `val` it finds too.
    """
    detector, card = load_detector(source / MODEL)
    size_hw = tuple(card.preprocessing["image_size_hw"])
    few = itertools.islice(fitted_images(val, size_hw), _NUM_COMPARED)
    examples = [{name: torch.from_numpy(value) for name, value in inputs.items()} for _, inputs, _ in few]
    seen = reference_of(detector, size_hw, examples)
    graph = FixedShapeDetector(detector, size_hw, nms_rounds=seen.safe_rounds)
    also = {"nms_rounds": seen.safe_rounds}
    names = graph.output_names
    parity = write_deployment(graph, examples, names, card, source, folder, expected=seen.outputs, also=also)
    cost = cost_of(graph, tuple(examples[0].values()))
    runner = OnnxRunner(folder / ONNX, num_threads=torch.get_num_threads())
    rows = detected_rows(runner.run, runner.inputs["image"], val, progress)
    (folder / DETECTIONS).write_text(json.dumps(rows))
    return {**coco_map(val.annotations, rows), "macs": cost.macs, "params": cost.params, "parity": parity}


def detected_rows(graph: Graph, image: TensorSpec, coco: CocoSet, progress: Report) -> list[dict[str, Any]]:
    """Return COCO result rows of everything that an exported detector finds in a set; `image` is the graph's input."""
    batch, _, height, width = image.fixed_shape("image")
    truth = read_annotations(coco.annotations)
    category_ids = [category["id"] for category in truth["categories"]]
    rows = []
    found = detections_by_graph(graph, coco, (height, width), batch, image.dtype)
    for i, detections in enumerate(found):
        rows += coco_rows(detections, category_ids)
        progress(i + 1, len(truth["images"]))
    return rows


def measure_latency(exports: Mapping[str, Path], settings: Timing, folder: Path, progress: Report) -> Figures:
    """Time every exported file alternately in one process; the first is the reference. Writes the record.

    Returns:
        {"rows": by name, latency and speedup with its interval}.
    """
    runners = {name: OnnxRunner(path / ONNX, num_threads=settings.num_threads) for name, path in exports.items()}
    inputs = random_inputs(next(iter(runners.values())).inputs)
    macs = {name: figures_in(path)["macs"] for name, path in exports.items()}
    measurement = measure_with_progress(runners, inputs, settings.warmup, settings.rounds, progress)
    record = record_from_measurement(measurement, runners, inputs, macs=macs, config=settings.model_dump())
    save_record(record, folder / RECORD)
    return {"rows": {str(row["name"]): row for row in rows_from_record(record)}}


def measure_with_progress(
    runners: Mapping[str, Runner], inputs: Arrays, warmup: int, rounds: int, progress: Report
) -> Measurement:
    """Return what `deploy.measure` does, telling progress after every round."""
    ticks = itertools.count(1)
    return measure(
        runners,
        inputs,
        warmup=warmup,
        rounds=rounds,
        on_round=lambda: progress(next(ticks), warmup + rounds),
    )
