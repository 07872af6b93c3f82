"""Measurements of every finished detector: one exported graph, its mAP, its costs, its latency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from classify.checkpoint import load_classifier
from classify.export import export_classifier
from classify.pruning import example_of
from command.files import write_json
from deploy.deployment import ONNX_NAME, open_deployment
from deploy.latency import measure_with_progress
from deploy.record import record_from_measurement, rows_from_record, save_record
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.tensors import random_inputs
from detect.bootstrap import drawn_maps
from detect.data import CocoSet
from detect.evaluate import box_evaluation, detected_rows, figures_of
from detect.export import export_file, module_from_file
from detect.export_config import ExportConfig, Pictures
from experiment.config import Timing
from experiment.stages import Figures, Report, figures_in
from experiment.steps import MODEL
from prune.cost import cost_of

__all__ = ["DETECTIONS", "RECORD", "export", "export_and_count", "measure_latency"]

DETECTIONS = "detections.json"
"""COCO result rows of the exported graph on the validation set."""
RECORD = "latency.json"


def export(
    source: Path, val: CocoSet, folder: Path, num_threads: int, progress: Report, mmdet: Config | None = None
) -> Figures:
    """Write the detector in `source` as `espalier deploy export` does, and evaluate that same file in ONNX Runtime.

    Returns:
        Of the ONNX file on `val`, `figures_of` its detections and `draws`, its mAP on each draw of the images (none
        where a draw has no object); `macs` and `params` of its graph, and how many of PyTorch's detections on a few
        images of `val` it finds too.
    """
    model = source / MODEL
    settings = ExportConfig(pictures=Pictures(annotations=val.annotations, images=val.images))
    parity = export_file(model, settings, folder, mmdet).parity
    cost = cost_of(*module_from_file(model, mmdet))
    runner = OnnxRunner(open_deployment(folder).file, num_threads=num_threads)
    rows = detected_rows(runner.run, runner.inputs["image"], val, progress)
    write_json(folder / DETECTIONS, rows)
    evaluation = box_evaluation(val.annotations, rows)
    draws = drawn_maps(evaluation)
    return {
        **figures_of(evaluation, val.annotations),
        "draws": [] if np.isnan(draws).any() else draws.round(6).tolist(),
        "macs": cost.macs,
        "params": cost.params,
        "parity": parity,
    }


def export_and_count(source: Path, folder: Path) -> Figures:
    """Write the classifier in `source` as `espalier deploy export` does; return `macs` and `params` of its graph."""
    model = source / MODEL
    settings: dict[str, Any] = {"batch": 1, "precision": "fp32", "image": "float32"}
    export_classifier(model, folder, **settings, config=settings)
    net, card = load_classifier(model)
    cost = cost_of(net, example_of(card))
    return {"macs": cost.macs, "params": cost.params}


def measure_latency(
    exports: Mapping[str, Path], settings: Timing, folder: Path, progress: Report, references: Mapping[str, str]
) -> Figures:
    """Time every exported file alternately in one process, each against its reference. Writes the record.

    Returns:
        {"rows": by name, latency and speedup with its interval}.
    """
    runners = {name: OnnxRunner(path / ONNX_NAME, num_threads=settings.num_threads) for name, path in exports.items()}
    inputs = random_inputs(next(iter(runners.values())).inputs)
    macs = {name: figures_in(path)["macs"] for name, path in exports.items()}
    measurement = measure_with_progress(runners, inputs, settings.warmup, settings.rounds, progress, references)
    record = record_from_measurement(measurement, runners, inputs, macs=macs, config=settings.model_dump())
    save_record(record, folder / RECORD)
    return {"rows": {str(row["name"]): row for row in rows_from_record(record)}}
