"""What every finished detector goes through: one exported graph, its mAP, its costs, its time."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from deploy import (
    ModuleRunner,
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
from detect.evaluate import agreement, coco_map, coco_rows, detections_by_graph, fitted_images
from detect.fixed_shape import FixedShapeDetector
from experiment.config import Timing
from experiment.stages import Figures, Report, figures_in
from experiment.steps import MODEL
from prune import cost_of

__all__ = [
    "DEPLOYMENT",
    "DETECTIONS",
    "ONNX",
    "RECORD",
    "detected_rows",
    "export",
    "measure_latency",
    "model_file",
    "sha256_of",
    "write_deployment",
]

ONNX = "model.onnx"
DEPLOYMENT = "deploy.json"
"""How to feed the ONNX file beside it."""
DETECTIONS = "detections.json"
"""COCO result rows of the exported graph on the validation set."""
RECORD = "latency.json"

_NUM_COMPARED = 8
_LEAST_AGREED = 0.95

_PREPROCESSING = {
    "detector": "RGB 0..255, scaled to fit with its ratio kept, padded right and below; normalised inside",
    "classifier": "RGB 0..255, the shorter side scaled to the input's, the centre cut out; normalised inside",
}


def export(source: Path, val: CocoSet, folder: Path, progress: Report) -> Figures:
    """Write the detector in `source` as one fixed-shape ONNX file with `deploy.json`, and score that very file.

    Returns:
        `map`, `map50`, `map75` of the ONNX file on `val`, `macs` and `params` of its graph, and how many of PyTorch's
        detections on a few images of `val` it finds too.
    """
    detector, card = load_detector(source / MODEL)
    size_hw = tuple(card.preprocessing["image_size_hw"])
    graph = FixedShapeDetector(detector, size_hw)
    few = itertools.islice(fitted_images(val, size_hw), _NUM_COMPARED)
    examples = [{name: torch.from_numpy(value) for name, value in inputs.items()} for _, inputs, _ in few]
    parity = write_deployment(graph, examples, graph.output_names, card, source, folder)
    cost = cost_of(graph, tuple(examples[0].values()))
    runner = OnnxRunner(folder / ONNX, num_threads=torch.get_num_threads())
    rows = detected_rows(runner, val, progress)
    (folder / DETECTIONS).write_text(json.dumps(rows))
    return {**coco_map(val.annotations, rows), "macs": cost.macs, "params": cost.params, "parity": parity}


def detected_rows(runner: OnnxRunner, coco: CocoSet, progress: Report) -> list[dict[str, Any]]:
    """Return COCO result rows of everything that an exported detector finds in a set, at the file's own shape."""
    batch, _, *size_hw = runner.inputs["image"].fixed_shape("image")
    truth = read_annotations(coco.annotations)
    category_ids = [category["id"] for category in truth["categories"]]
    rows = []
    for i, detections in enumerate(detections_by_graph(runner.run, coco, (size_hw[0], size_hw[1]), batch)):
        rows += coco_rows(detections, category_ids)
        progress(i + 1, len(truth["images"]))
    return rows


def write_deployment(
    graph: nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    output_names: Sequence[str],
    card: ModelCard,
    source: Path,
    folder: Path,
) -> Figures:
    """Write `model.onnx`, checked against PyTorch, and `deploy.json` that says how to feed it.

    Args:
        graph: What `onnx_from_module` takes, its inputs and output names too.
        examples: Tensors by input name; the first is exported with, all are compared on.
        output_names: One for each tensor the graph gives.
        card: Of the model inside.
        source: The model's file, or the folder of the stage that made it.
        folder: Created.

    Returns:
        The largest differences from PyTorch by output; for detectors, how many detections agree of how many.

    Raises:
        RuntimeError: If the file does not give what PyTorch gives.
    """
    is_detector = card.kind == "detector"
    tolerance = math.inf if is_detector else 1e-4  # of two near-equal boxes either may be kept: agreement counts
    figures: Figures = {}
    figures["difference"] = onnx_from_module(graph, examples[0], folder / ONNX, output_names, tolerance=tolerance)
    if is_detector:
        figures = _agreement(graph, examples, output_names, folder / ONNX)
    model = load_onnx(folder / ONNX)
    description = {
        "inputs": {name: list(spec.shape) for name, spec in input_specs(model).items()},
        "preprocessing": _PREPROCESSING[card.kind],
        "classes": card.classes,
        "precision": precision_of(model),
        "parity": figures,
        "versions": installed_versions(),
        "sha256": {ONNX: sha256_of(folder / ONNX)},
        "model": source.name,
        "model_sha256": sha256_of(model_file(source)),
    }
    with written_atomically(folder / DEPLOYMENT) as path:
        path.write_text(json.dumps(description, indent=1))
    return figures


def model_file(source: Path) -> Path:
    """Return a model's file, given that or the folder of the stage that made it."""
    return source / MODEL if source.is_dir() else source


def sha256_of(path: Path) -> str:
    """Return the hash by which a file is known."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _agreement(
    graph: nn.Module, examples: Sequence[Mapping[str, Tensor]], output_names: Sequence[str], file: Path
) -> Figures:
    torch_runner, onnx_runner = ModuleRunner(graph, output_names), OnnxRunner(file)
    num_agreed = num_detections = 0
    for example in examples:
        inputs = {name: tensor.numpy() for name, tensor in example.items()}
        agreed, detections = agreement(torch_runner.run(inputs), onnx_runner.run(inputs))
        num_agreed, num_detections = num_agreed + agreed, num_detections + detections
    if num_agreed < _LEAST_AGREED * num_detections:
        raise RuntimeError(f"{file}: agrees with PyTorch on {num_agreed} of {num_detections} detections; expected 95 %")
    return {"num_agreed": num_agreed, "num_detections": num_detections}


def measure_latency(exports: Mapping[str, Path], settings: Timing, folder: Path, progress: Report) -> Figures:
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
