"""The deployed model: a folder of one ONNX file and the `deploy.json` that says how to feed it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from deploy import ModuleRunner, OnnxRunner, onnx_from_module
from deploy.files import existing_file, model_from_json, written_atomically
from deploy.graph import input_specs, load_onnx, precision_of
from deploy.record import installed_versions
from detect.evaluate import agreement
from detect.fixed_shape import FixedShapeDetector
from experiment.stages import Figures
from experiment.steps import MODEL

__all__ = [
    "DEPLOYMENT",
    "ONNX",
    "Deployed",
    "Deployment",
    "model_file",
    "open_deployment",
    "sha256_of",
    "write_deployment",
]

ONNX = "model.onnx"
DEPLOYMENT = "deploy.json"
"""How to feed the ONNX file beside it."""

_LEAST_AGREED = 0.95
_OUTPUTS = ("boxes_xyxy", "scores", "labels")
_REMEDY = "expected a folder that espalier deploy export wrote, or the ONNX file in it"

_PREPROCESSING = {
    "detector": "RGB 0..255, scaled to fit with its ratio kept, padded right and below; normalised inside",
    "classifier": "RGB 0..255, the shorter side scaled to the input's, the centre cut out; normalised inside",
}


class Deployment(BaseModel):
    """What is read of `deploy.json`."""

    inputs: dict[str, list[int | None]]
    classes: tuple[str, ...]
    sha256: dict[str, str]
    model: str
    model_sha256: str | None = None  # absent in folders of earlier versions


@dataclass(frozen=True)
class Deployed:
    """An ONNX file that is a detector of ours."""

    onnx: Path
    deployment: Deployment
    runner: OnnxRunner

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image that the file takes."""
        height, width = self.runner.inputs["image"].fixed_shape("image")[2:]
        return height, width


def open_deployment(path: Path) -> Deployed:
    """Return the detector in a folder, ready to run.

    Args:
        path: The folder, or an ONNX file with its `deploy.json` beside it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is no detector of ours, or not what its `deploy.json` describes.
    """
    onnx = existing_file(path / ONNX if path.is_dir() else path, _REMEDY)
    deployment = model_from_json(Deployment, onnx.parent / DEPLOYMENT, _REMEDY)
    runner = OnnxRunner(onnx, num_threads=torch.get_num_threads())
    names, ours = ({*runner.inputs, *runner.outputs}, {*FixedShapeDetector.input_names, *_OUTPUTS})
    if names != ours:
        raise ValueError(
            f"{onnx}: not a detector of ours, got inputs and outputs {', '.join(sorted(names))}; "
            f"expected {', '.join(sorted(ours))}"
        )
    shapes = {name: list(spec.shape) for name, spec in runner.inputs.items()}
    if shapes != deployment.inputs:
        raise ValueError(f"{onnx}: not what its {DEPLOYMENT} describes, got {shapes}; expected {deployment.inputs}")
    return Deployed(onnx, deployment, runner)


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
