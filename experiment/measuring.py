"""Measurements of every finished detector: one exported graph, its mAP, its costs, its latency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from classify.accuracy import accuracy
from classify.checkpoint import load_classifier
from classify.evaluate import answers_of
from classify.export import export_classifier
from classify.pruning import example_of
from classify.resampling import drawn_means
from command.files import write_json
from deploy.deployment import ONNX_NAME, open_deployment
from deploy.engine import engine_from_onnx
from deploy.latency import measure_with_progress
from deploy.record import record_from_measurement, rows_from_record, save_record
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.runtimes.registry import runner_for
from deploy.runtimes.runner import FileRunner
from deploy.tensors import random_inputs
from detect.bootstrap import drawn_maps
from detect.data import CocoSet
from detect.evaluate import box_evaluation, detected_rows, figures_of
from detect.export import export_file, module_from_file
from detect.export_config import ExportConfig, Pictures
from experiment.config import Timing
from experiment.stages import Figures, Report, figures_in
from experiment.steps import MODEL
from experiment.targets import Target
from prune.cost import cost_of

__all__ = [
    "DETECTIONS",
    "RECORD",
    "build",
    "evaluate_classifier_on",
    "evaluate_detector_on",
    "export",
    "export_and_count",
    "measure_latency",
]

DETECTIONS = "detections.json"
"""COCO result rows of the file that is run on the validation set."""
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
    scores = _box_scores(runner, val, folder, progress)
    return {**scores, "macs": cost.macs, "params": cost.params, "parity": parity}


def _box_scores(runner: FileRunner, val: CocoSet, folder: Path, progress: Report) -> Figures:
    rows = detected_rows(runner.run, runner.inputs["image"], val, progress)
    write_json(folder / DETECTIONS, rows)
    evaluation = box_evaluation(val.annotations, rows)
    draws = drawn_maps(evaluation)
    return {
        **figures_of(evaluation, val.annotations),
        "draws": [] if np.isnan(draws).any() else draws.round(6).tolist(),
    }


def build(source: Path, target: Target, train: CocoSet | None, folder: Path, mmdet: Config | None = None) -> Figures:
    """Write the file of the model in `source` for a target, an engine beside its ONNX file.

    Args:
        source: Folder of the model.
        target: Where it is to run.
        train: Images of a detector's training: int8 is calibrated on them, and the ONNX file compared with PyTorch.
        folder: Where it is written.
        mmdet: mmdet's config of the detector.

    Returns:
        `macs` and `params` of its graph for one image, and its `parity` with PyTorch.
    """
    model = source / MODEL
    parity = export_file(model, target.export_config(train), folder, mmdet).parity
    cost = cost_of(*module_from_file(model, mmdet, target.size_hw))
    if target.backend:
        engine_from_onnx(
            folder / ONNX_NAME,
            folder / target.file,
            backend=target.backend,
            compute_capabilities=target.compute_capabilities,
        )
    return {"macs": cost.macs, "params": cost.params, "parity": parity}


def evaluate_detector_on(
    target: Target, built: Path, val: CocoSet, folder: Path, num_threads: int, progress: Report
) -> Figures:
    """Return what `export` does of the file in `built`, run on its target, and what was found out about the file."""
    runner = runner_for(open_deployment(built / target.file).file, target.opened_by, num_threads)
    return {**_box_scores(runner, val, folder, progress), **_facts(runner)}


def evaluate_classifier_on(target: Target, built: Path, images: Any, num_threads: int, progress: Report) -> Figures:
    """Return accuracies of the file in `built`, run on its target, and what was found out about the file.

    Args:
        target: Where it runs.
        built: Folder of its build.
        images: (uint8 image, label) pairs.
        num_threads: CPU threads of a runtime on the CPU.
        progress: Called after every batch.
    """
    runner = runner_for(built / target.file, target.opened_by, num_threads)
    found = answers_of(runner.run, images, target.batch, progress)
    return {**accuracy(found), "draws": drawn_means(found.is_right), **_facts(runner)}


def _facts(runner: FileRunner) -> Figures:
    return {"precision": runner.precision, "device": runner.device, "file_sha256": runner.file_sha256}


def export_and_count(source: Path, folder: Path) -> Figures:
    """Write the classifier in `source` as `espalier deploy export` does; return `macs` and `params` of its graph."""
    model = source / MODEL
    settings: dict[str, Any] = {"batch": 1, "precision": "fp32", "image": "float32"}
    export_classifier(model, folder, **settings, config=settings)
    net, card = load_classifier(model)
    cost = cost_of(net, example_of(card))
    return {"macs": cost.macs, "params": cost.params}


def measure_latency(
    files: Mapping[str, Path],
    target: Target,
    settings: Timing,
    folder: Path,
    progress: Report,
    references: Mapping[str, str],
) -> Figures:
    """Time every file of a target alternately in one process, each against its reference. Writes the record.

    Returns:
        {"rows": by name, latency and speedup with its interval}.
    """
    runners = {name: runner_for(file, target.opened_by, settings.num_threads) for name, file in files.items()}
    inputs = random_inputs(next(iter(runners.values())).inputs)
    macs = {name: target.batch * figures_in(file.parent)["macs"] for name, file in files.items()}
    measurement = measure_with_progress(runners, inputs, settings.warmup, settings.rounds, progress, references)
    record = record_from_measurement(measurement, runners, inputs, macs=macs, config=settings.model_dump())
    save_record(record, folder / RECORD)
    return {"rows": {str(row["name"]): row for row in rows_from_record(record)}}
