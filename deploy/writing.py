"""Writes a module as a deployed folder: exports it, compares it with PyTorch and describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from command.errors import WorkError
from command.files import sha256_of
from command.folders import filled_folder
from deploy.agreement import agreement
from deploy.classes import CLASSES_KEY
from deploy.deployment import DEPLOYMENT, ONNX_NAME, Deployment, Precision
from deploy.export import OPSET, onnx_from_module
from deploy.machine import installed_versions, num_cores
from deploy.onnx_file import input_specs, load_onnx, output_specs
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.tensors import Arrays

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MEANINGS", "Comparison", "Origin", "write_deployment"]

_TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.05}
"""Largest difference of scores from PyTorch in fp32; no runtime here computes in bf16 on a CPU."""
_BOX_TOLERANCES: Mapping[str, float] = {"fp32": 0.1, "fp16": 2.0, "int8": 8.0}
"""Largest distance of corners, in pixels."""
_NETWORK_TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp16": 0.01}
"""Largest difference of the networks' outputs, in units of max(1, the largest of them)."""
_LEAST_AGREED: Mapping[str, float] = {"fp32": 0.95, "fp16": 0.9, "int8": 0.0}
"""Share of the detections that must agree: either of two nearly equal boxes may be kept. `deploy eval` measures what
int8 loses."""
_MOST_SPREAD, _FEWEST = 20, 10
"""The scores of at least so many detections lie within so many tolerances of each other: as with random weights."""
_BF16_OPSET = 22
"""The first with bfloat16 convolutions."""
_OLDEST_RUNTIMES: Mapping[int, dict[str, str]] = {OPSET: {"onnxruntime": "1.15.1"}}
"""Operator set -> the oldest versions of runtimes that files in fp32, fp16 and int8 were run with."""

_PREPROCESSING = {
    "detector": "RGB 0..255, scaled to fit with its ratio kept, padded right and below; normalised inside",
    "classifier": "RGB 0..255, the shorter side scaled to the input's, the centre cut out; normalised inside",
}
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "detector": {
        "image": "RGB, 0 to 255, whole planes (batch, channel, row, column); scaled by one factor so that it just "
        "fits, at the top left; the rest is padding, 0, and is ignored",
        "image_hw": "height and width in pixels of the scaled image, without its padding",
        "boxes_xyxy": "left, top, right, bottom in pixels of the input, from its top left corner, inside the image; "
        "divided by the factor of the scaling they are pixels of the original",
        "scores": "0 to 1, the highest first; 0 at unused places",
        "labels": "number of the class, its place in the list of classes from 0; -1 at unused places",
        "nms_converged": "false where NMS would have needed more iterations",
    },
    "classifier": {
        "image": "RGB, 0 to 255, whole planes (batch, channel, row, column); the shorter side scaled to the input's, "
        "the centre cut out",
        "scores": "one per class, in the order of the list of classes; a softmax makes shares of them",
    },
}
"""Kind of network -> what each input and output means."""


@dataclass(frozen=True)
class Origin:
    """The source of a deployed file."""

    kind: Literal["detector", "classifier"]
    classes: tuple[str, ...]
    model: Path
    """The model file."""
    config: Mapping[str, Any]
    """The settings of the export; JSON values."""
    precision: Precision = "fp32"
    """Precision of the final file; it sets the tolerances."""
    mmdet: str | None = None
    """Name of mmdet's config, for a checkpoint of mmdet."""
    nms_iterations: int | None = None
    network_hw: tuple[int, int] | None = None
    shorter_side: int | None = None
    """Of a classifier's image before the centre is cut out, in pixels; None for the side of the input."""

    def told(self, text: str) -> str:
        """Return what is said of the input, for this file."""
        return text.replace("the input's", f"{self.shorter_side} pixels") if self.shorter_side else text


@dataclass(frozen=True)
class Comparison:
    """What a deployed file is compared with."""

    examples: Sequence[Mapping[str, Tensor]]
    """Tensors by input name; the first one is used for the export."""
    images: str
    """Human-readable description of the examples: "4 random images"."""
    reference: nn.Module | None = None
    """For a classifier: the module to compare with, in fp32 and eval mode."""
    expected: Sequence[Arrays] = ()
    """For a detector: PyTorch's detections in each of the examples."""
    networks: Callable[[], tuple[nn.Module, nn.Module]] | None = None
    """The outputs of a detector's networks before NMS, in the file's precision and in fp32: compared where scores are
    so nearly equal that rounding decides which boxes NMS keeps."""


def write_deployment(
    graph: nn.Module,
    origin: Origin,
    comparison: Comparison,
    folder: Path,
    quantize: Callable[[Path, Path], object] | None = None,
) -> dict[str, Any] | None:
    """Write `model.onnx`, compared with PyTorch, and `deploy.json`, which describes it: both, or neither.

    Args:
        graph: Module for `onnx_from_module`, with `output_names`.
        origin: Its source.
        comparison: What it is compared with.
        folder: Created; other files in it stay.
        quantize: Turns the exported file into the final one; called with both paths.

    Returns:
        The largest differences from PyTorch by output; for detectors, how many detections agree of how many. None for
        bf16: ONNX Runtime has no bf16 convolution on a CPU.

    Raises:
        WorkError: If the file's outputs differ from PyTorch's or are not finite; in int8, detections are only counted.
    """
    is_detector, precision = origin.kind == "detector", origin.precision
    with filled_folder(folder) as work:
        onnx = work / ONNX_NAME
        exported = work / "before.onnx" if quantize else onnx
        differences = onnx_from_module(
            graph,
            comparison.examples[0],
            exported,
            graph.output_names,  # type: ignore[arg-type]  # torch types every attribute of a module as one
            tolerance=None if is_detector else _TOLERANCES.get(precision),  # detections are compared by agreement
            opset=_BF16_OPSET if precision == "bf16" else OPSET,
            reference=comparison.reference,
        )
        if quantize:
            quantize(exported, onnx)
            exported.unlink()
        _describe(onnx, origin.classes, MEANINGS[origin.kind])
        parity: dict[str, Any] | None = {"difference": differences} if differences else None
        if is_detector and precision in _TOLERANCES:
            parity = _agreement(comparison, onnx, precision)
        deployment = _described(onnx, origin, folder).model_copy(
            update={"parity": parity, "compared_on": comparison.images}
        )
        (work / DEPLOYMENT).write_text(deployment.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return parity


def _describe(onnx: Path, classes: Sequence[str], meaning: Mapping[str, str]) -> None:
    """Write into the file what its outputs mean: it may travel without its folder."""
    from onnx.helper import set_model_props

    model = load_onnx(onnx)
    set_model_props(model, {CLASSES_KEY: json.dumps(classes)})
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.doc_string = meaning.get(tensor.name, "")
    onnx.write_bytes(model.SerializeToString())


def _described(onnx: Path, origin: Origin, folder: Path) -> Deployment:
    model, parent = load_onnx(onnx), Path(os.path.abspath(folder)).parent
    inputs, outputs = input_specs(model), output_specs(model)
    source = Path(os.path.abspath(origin.model))  # without .., which no description may hold
    return Deployment(
        inputs=inputs,
        outputs=outputs,
        meaning={name: origin.told(MEANINGS[origin.kind][name]) for name in (*inputs, *outputs)},
        preprocessing=origin.told(_PREPROCESSING[origin.kind]),
        classes=origin.classes,
        precision=origin.precision,
        versions=installed_versions(),
        opset=(opset := model.opset_import[0].version),
        oldest_runtimes=_OLDEST_RUNTIMES.get(opset, {}),
        sha256={ONNX_NAME: sha256_of(onnx)},
        # only the name of a file elsewhere: its folders are private
        model=source.relative_to(parent).as_posix() if source.is_relative_to(parent) else source.name,
        model_sha256=sha256_of(source),
        parity=None,
        compared_on="",
        config=dict(origin.config),
        mmdet=origin.mmdet,
        nms_iterations=origin.nms_iterations,
        network_hw=origin.network_hw,
    )


def _agreement(comparison: Comparison, file: Path, precision: str) -> dict[str, Any]:
    """Return how many detections agree; if all scores are nearly equal, also the networks' largest differences."""
    runner = OnnxRunner(file, num_threads=num_cores())
    tolerances = _TOLERANCES[precision], _BOX_TOLERANCES[precision]
    num_agreed = num_detections = 0
    for outputs, example in zip(comparison.expected, comparison.examples, strict=True):
        found = runner.run({name: tensor.numpy() for name, tensor in example.items()})
        if not all(np.isfinite(array).all() for array in found.values()):
            raise WorkError(f"{file.name}: outputs are not finite, got NaN or infinity; expected boxes and scores")
        agreed, total = agreement(outputs, found, *tolerances)
        num_agreed, num_detections = num_agreed + agreed, num_detections + total
    parity = {"num_agreed": num_agreed, "num_detections": num_detections}
    least = _LEAST_AGREED[precision]
    if num_agreed >= least * num_detections:
        return parity
    if comparison.networks and _scores_are_equal(comparison.expected, tolerances[0]):
        return {**parity, "networks": _network_differences(comparison, comparison.networks, file, precision)}
    raise WorkError(
        f"{file.name}: differs from PyTorch, got {num_agreed} of {num_detections} detections that agree; expected "
        f"{least:.0%}"
    )


def _scores_are_equal(expected: Sequence[Arrays], tolerance: float) -> bool:
    """Return whether many boxes are found and their scores are nearly equal, as with random weights."""
    scores = np.concatenate([outputs["scores"][np.asarray(outputs["labels"], np.int64) >= 0] for outputs in expected])
    return len(scores) >= _FEWEST and bool(np.ptp(scores) <= _MOST_SPREAD * tolerance)


def _network_differences(
    comparison: Comparison, networks: Callable[[], tuple[nn.Module, nn.Module]], file: Path, precision: str
) -> dict[str, float]:
    """Return the largest differences of the networks, exported in the file's precision, from PyTorch in fp32."""
    graph, reference = networks()
    written = file.with_name("networks.onnx")
    differences = onnx_from_module(
        graph,
        comparison.examples[0],
        written,
        graph.output_names,  # type: ignore[arg-type]  # torch types every attribute of a module as one
        tolerance=_NETWORK_TOLERANCES[precision],
        reference=reference,
    )
    written.unlink()
    return differences
