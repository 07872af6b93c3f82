"""The deployed model: a folder of one ONNX file and the `deploy.json` that says how to feed it."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from deploy import Arrays, OnnxRunner, TensorSpec, onnx_from_module, read_engine_info
from deploy.files import existing_file, model_from_json, sha256_of
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
"""What scores may differ by from PyTorch in float32; bf16 runs on no CPU here."""
_BOX_TOLERANCES: Mapping[str, float] = {"fp32": 0.1, "fp16": 2.0, "int8": 8.0}
"""How many pixels apart corners may be."""
_LEAST_AGREED: Mapping[str, float] = {"fp32": 0.95, "fp16": 0.9, "int8": 0.0}
"""Share of the detections that must agree; of two near-equal boxes either may be kept, and what int8 loses is for
`deploy eval` to measure."""
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
    network_hw: tuple[int, int] | None = None
    """What the detector sees, where that is not the input: pictures are scaled inside the graph then."""


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

    @property
    def network_hw(self) -> tuple[int, int]:
        """Height and width that the detector inside sees."""
        return self.deployment.network_hw or self.size_hw

    @property
    def is_as_exported(self) -> bool:
        """Whether the file, or what the engine was built from, is what `deploy.json` describes."""
        made_from = read_engine_info(self.file).onnx_sha256 if self.file.suffix == ENGINE else sha256_of(self.file)
        return made_from in self.deployment.sha256.values()

    def runner(self, runtime: str | None = None) -> FileRunner:
        """Return what runs it, in the named runtime or that of its kind; raises as `deploy.runner_for` does."""
        return runner_for(self.file, runtime, torch.get_num_threads())


def open_deployment(path: Path, *, may_differ: bool = False) -> Deployed:
    """Return the detector in a folder; nothing is run yet.

    Args:
        path: The folder, whose ONNX file is taken, or an ONNX file or engine with their `deploy.json` beside it.
        may_differ: Whether an ONNX file will do that was not exported so, if inputs and outputs are the same.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is no detector of ours, not what its `deploy.json` describes, or an engine of another file.
    """
    file = existing_file(path / ONNX if path.is_dir() else path, _REMEDY)
    deployment = model_from_json(Deployment, file.parent / DEPLOYMENT, _REMEDY)
    inputs, outputs = _engine_specs(file) if file.suffix == ENGINE else _onnx_specs(file)
    names, ours = ({*inputs, *outputs} - _DEBUG, {*FixedShapeDetector.input_names, *_OUTPUTS})
    if names != ours:
        raise ValueError(
            f"{file}: not a detector of ours, got inputs and outputs {', '.join(sorted(names))}; "
            f"expected {', '.join(sorted(ours))}"
        )
    shapes = {name: list(spec.shape) for name, spec in inputs.items()}
    if shapes != deployment.inputs:
        raise ValueError(f"{file}: not what its {DEPLOYMENT} describes, got {shapes}; expected {deployment.inputs}")
    deployed = Deployed(file, deployment, inputs, outputs)
    if not (may_differ or deployed.is_as_exported):  # another detector's classes would have these names
        raise ValueError(f"{file}: not as exported, its {DEPLOYMENT} records another sha256; export it again")
    return deployed


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
    expected: Sequence[Arrays] = (),
    quantize: Callable[[Path, Path], object] | None = None,
    also: Mapping[str, Any] | None = None,
) -> Figures | None:
    """Write `model.onnx`, compared with PyTorch, and `deploy.json` that says how to feed it: both, or neither.

    Args:
        graph: What `onnx_from_module` takes, its inputs and output names too.
        examples: Tensors by input name; the first is exported with. A detector is compared on all of them.
        output_names: One for each tensor the graph gives.
        card: Of the model inside.
        source: The model's file, or the folder of the stage that made it.
        folder: Created; other files in it stay.
        precision: Of the file in the end; it says how near to PyTorch the file must be.
        reference: A classifier that is compared with in the graph's place, in float32 and eval mode.
        expected: What a detector in PyTorch finds in each of the examples, see `detect.reference`.
        quantize: Makes the file in the end of the exported one; called with both paths.
        also: More entries of `deploy.json`.

    Returns:
        The largest differences from PyTorch by output; for detectors, how many detections agree of how many. None for
        bf16: ONNX Runtime has no such convolution on a CPU.

    Raises:
        RuntimeError: If the file does not give what PyTorch gives, or no numbers; in int8, detections are counted
            only.
    """
    is_detector = card.kind == "detector"
    exact = None if is_detector else _TOLERANCES.get(precision)  # detections are compared by their agreement
    opset = 22 if precision == "bf16" else 18  # the first whose convolutions take bfloat16
    with _replaced(folder, ONNX, DEPLOYMENT) as work:
        exported = work / ("float.onnx" if quantize else ONNX)
        differences = onnx_from_module(
            graph, examples[0], exported, output_names, tolerance=exact, opset=opset, reference=reference
        )
        if quantize:
            quantize(exported, work / ONNX)
        parity: Figures | None = {"difference": differences} if differences else None
        if is_detector and precision in _TOLERANCES:
            parity = _agreement(expected, examples, work / ONNX, precision)
        description = {**_described(work / ONNX, card, source), "parity": parity, **(also or {})}
        (work / DEPLOYMENT).write_text(json.dumps(description, indent=1))
    return parity


def model_file(source: Path) -> Path:
    """Return a model's file, given that or the folder of the stage that made it."""
    return source / MODEL if source.is_dir() else source


def _onnx_specs(file: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    model = load_onnx(file)
    return input_specs(model), output_specs(model)


def _engine_specs(file: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    info = read_engine_info(file)
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
    expected: Sequence[Arrays], examples: Sequence[Mapping[str, Tensor]], file: Path, precision: Precision
) -> Figures:
    runner = OnnxRunner(file, num_threads=torch.get_num_threads())
    tolerances = _TOLERANCES[precision], _BOX_TOLERANCES[precision]
    num_agreed = num_detections = 0
    for outputs, example in zip(expected, examples, strict=True):
        found = runner.run({name: tensor.numpy() for name, tensor in example.items()})
        if not all(np.isfinite(array).all() for array in found.values()):
            raise RuntimeError(f"{file.name}: gives no numbers, got NaN or infinity; expected boxes and scores")
        agreed, total = agreement(outputs, found, *tolerances)
        num_agreed, num_detections = num_agreed + agreed, num_detections + total
    least = _LEAST_AGREED[precision]
    if num_agreed < least * num_detections:
        raise RuntimeError(
            f"{file.name}: agrees with PyTorch on {num_agreed} of {num_detections} detections; expected {least:.0%}"
        )
    return {"num_agreed": num_agreed, "num_detections": num_detections}
