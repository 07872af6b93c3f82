"""The deployed model: a folder of one ONNX file and the `deploy.json` that says how to feed it."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from deploy import ModuleRunner, OnnxRunner, TensorSpec, onnx_from_module, read_engine_info
from deploy.files import existing_file, model_from_json
from deploy.graph import input_specs, load_onnx, output_specs, precision_of
from deploy.record import installed_versions
from deploy.runtime import FileRunner
from deploy.runtimes import ENGINE, runner_for
from detect.evaluate import agreement
from detect.fixed_shape import FixedShapeDetector
from experiment.stages import Figures
from experiment.steps import MODEL

__all__ = [
    "DEPLOYMENT",
    "ONNX",
    "Deployed",
    "Deployment",
    "Precision",
    "model_file",
    "open_deployment",
    "sha256_of",
    "write_deployment",
]

ONNX = "model.onnx"
DEPLOYMENT = "deploy.json"
"""How to feed the ONNX file beside it."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]

_TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.05}
"""What scores may differ by from PyTorch in float32, and boxes as a share of the image; bf16 runs on no CPU here."""
_LEAST_AGREED: Mapping[str, float] = {"fp32": 0.95, "fp16": 0.9, "int8": 0.0}
"""Share of the detections that must agree; what int8 loses is for `deploy eval` to measure."""
_OUTPUTS = ("boxes_xyxy", "scores", "labels")
_DEBUG = {"nms_converged"}
_REMEDY = "expected a folder that espalier deploy export wrote, or the ONNX file or an engine in it"

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
    mmdet: str | None = None
    """Name of mmdet's config, where the model is none of ours."""


@dataclass(frozen=True)
class Deployed:
    """A detector of ours as it is deployed: an ONNX file, or an engine built from it."""

    file: Path
    deployment: Deployment
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image that the file takes."""
        height, width = self.inputs["image"].fixed_shape("image")[2:]
        return height, width

    def runner(self, runtime: str | None = None) -> FileRunner:
        """Return what runs it, in the named runtime or that of its kind; raises as `deploy.runner_for` does."""
        return runner_for(self.file, runtime, torch.get_num_threads())


def open_deployment(path: Path) -> Deployed:
    """Return the detector in a folder; nothing is run yet.

    Args:
        path: The folder, whose ONNX file is taken, or an ONNX file or engine with their `deploy.json` beside it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is no detector of ours, not what its `deploy.json` describes, or an engine of another file.
    """
    file = existing_file(path / ONNX if path.is_dir() else path, _REMEDY)
    deployment = model_from_json(Deployment, file.parent / DEPLOYMENT, _REMEDY)
    inputs, outputs = _engine_specs(file, deployment) if file.suffix == ENGINE else _onnx_specs(file)
    names, ours = ({*inputs, *outputs} - _DEBUG, {*FixedShapeDetector.input_names, *_OUTPUTS})
    if names != ours:
        raise ValueError(
            f"{file}: not a detector of ours, got inputs and outputs {', '.join(sorted(names))}; "
            f"expected {', '.join(sorted(ours))}"
        )
    shapes = {name: list(spec.shape) for name, spec in inputs.items()}
    if shapes != deployment.inputs:
        raise ValueError(f"{file}: not what its {DEPLOYMENT} describes, got {shapes}; expected {deployment.inputs}")
    return Deployed(file, deployment, inputs, outputs)


def write_deployment(
    graph: nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    output_names: Sequence[str],
    card: ModelCard,
    source: Path,
    folder: Path,
    *,
    precision: Precision = "fp32",
    reference: nn.Module | None = None,
    quantize: Callable[[Path, Path], object] | None = None,
    also: Mapping[str, Any] | None = None,
) -> Figures | None:
    """Write `model.onnx`, compared with PyTorch, and `deploy.json` that says how to feed it: both, or neither.

    Args:
        graph: What `onnx_from_module` takes, its inputs and output names too.
        examples: Tensors by input name; the first is exported with, all are compared on.
        output_names: One for each tensor the graph gives.
        card: Of the model inside.
        source: The model's file, or the folder of the stage that made it.
        folder: Created; other files in it stay.
        precision: Of the file in the end; it says how near to PyTorch the file must be.
        reference: What PyTorch computes in float32, in eval mode; the graph itself unless given.
        quantize: Makes the file in the end of the exported one; called with both paths.
        also: More entries of `deploy.json`.

    Returns:
        The largest differences from PyTorch by output; for detectors, how many detections agree of how many. None for
        bf16: ONNX Runtime has no such convolution on a CPU.

    Raises:
        RuntimeError: If the file does not give what PyTorch gives; in int8, detections are counted only.
    """
    tolerance, is_detector = _TOLERANCES.get(precision), card.kind == "detector"
    exact = None if is_detector else tolerance  # of two near-equal boxes either may be kept: agreement counts
    opset = 22 if precision == "bf16" else 18  # the first whose convolutions take bfloat16
    with _replaced(folder, ONNX, DEPLOYMENT) as work:
        exported = work / ("float.onnx" if quantize else ONNX)
        differences = onnx_from_module(
            graph, examples[0], exported, output_names, tolerance=exact, opset=opset, reference=reference
        )
        if quantize:
            quantize(exported, work / ONNX)
        parity: Figures | None = {"difference": differences} if differences else None
        if is_detector and tolerance:
            parity = _agreement(reference or graph, examples, output_names, work / ONNX, precision)
        description = {**_described(work / ONNX, card, source), "parity": parity, **(also or {})}
        (work / DEPLOYMENT).write_text(json.dumps(description, indent=1))
    return parity


def model_file(source: Path) -> Path:
    """Return a model's file, given that or the folder of the stage that made it."""
    return source / MODEL if source.is_dir() else source


def sha256_of(path: Path) -> str:
    """Return the hash by which a file is known."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _onnx_specs(file: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    model = load_onnx(file)
    return input_specs(model), output_specs(model)


def _engine_specs(file: Path, deployment: Deployment) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    info = read_engine_info(file)
    if info.onnx_sha256 not in deployment.sha256.values():
        exported = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in deployment.sha256.items())
        raise ValueError(
            f"{file}: built of another ONNX file than was exported, got sha256 {info.onnx_sha256[:12]}; "
            f"expected {exported}, build it again"
        )
    return info.inputs, info.outputs


@contextmanager
def _replaced(folder: Path, *names: str) -> Iterator[Path]:
    """Yield a folder whose files of these names are put into `folder` when the block ends; nothing is if it raises."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as work:
        yield Path(work)
        folder.mkdir(exist_ok=True)
        for name in names:
            (Path(work) / name).replace(folder / name)


def _described(onnx: Path, card: ModelCard, source: Path) -> dict[str, Any]:
    model = load_onnx(onnx)
    return {
        "inputs": {name: list(spec.shape) for name, spec in input_specs(model).items()},
        "preprocessing": _PREPROCESSING[card.kind],
        "classes": card.classes,
        "precision": precision_of(model),
        "versions": installed_versions(),
        "sha256": {ONNX: sha256_of(onnx)},
        "model": source.name,
        "model_sha256": sha256_of(model_file(source)),
    }


def _agreement(
    reference: nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    output_names: Sequence[str],
    file: Path,
    precision: Precision,
) -> Figures:
    torch_runner = ModuleRunner(reference, output_names)
    onnx_runner = OnnxRunner(file, num_threads=torch.get_num_threads())
    num_agreed = num_detections = 0
    for example in examples:
        inputs = {name: tensor.numpy() for name, tensor in example.items()}
        found = agreement(torch_runner.run(inputs), onnx_runner.run(inputs), _TOLERANCES[precision])
        num_agreed, num_detections = num_agreed + found[0], num_detections + found[1]
    least = _LEAST_AGREED[precision]
    if num_agreed < least * num_detections:
        raise RuntimeError(
            f"{file.name}: agrees with PyTorch on {num_agreed} of {num_detections} detections; expected {least:.0%}"
        )
    return {"num_agreed": num_agreed, "num_detections": num_detections}
