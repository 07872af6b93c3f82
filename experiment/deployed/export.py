"""What `espalier deploy export` is told, and how it is done: a model becomes one graph in the precision asked for."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor

from classify.checkpoint import ModelCard, load_classifier, read_card
from classify.config import Part, check_name
from deploy import quantized_onnx
from deploy.precision import KEEP_FLOAT, METHODS
from detect import load_detector
from detect.data import CocoSet, check_coco
from detect.evaluate import fitted_images
from detect.fitting import stacked
from detect.fixed_shape import FixedShapeDetector, RunsOn
from detect.foreign import load_foreign
from detect.reference import Reference, reference_of
from detect.scaling import ScalingDetector
from experiment.deployed.folder import Precision, write_deployment
from experiment.deployed.graphs import ClassScores
from experiment.deployed.values import check_finite, check_range
from experiment.stages import Figures

__all__ = ["ExportConfig", "Exported", "Pictures", "Quantization", "export_file"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
_ADAPTIVE = (
    "note: RoIAlign samples adaptively (sampling_ratio=0), which has no fixed shape; exported with sampling_ratio=2: "
    "compare the mAP with espalier deploy eval"
)
_STRETCHED = (
    "note: the config stretches pictures to its scale (keep_ratio=False); here their ratio is kept, in deploy eval "
    "too: compare the mAP with mmdet's own test"
)
_Inputs = tuple[list[dict[str, Tensor]], str, Callable[[Path, Path], object] | None]
"""Examples to compare on, what they are, and what makes the file in the end of the exported one."""
_NUM_RANDOM, _NUM_PICTURES = 4, 8  # compared with PyTorch, at least and at most
_USUALLY_AGREED = {"fp32": 1.0, "fp16": 0.95, "int8": 0.5}


class Pictures(Part):
    """Pictures like those to come, but none of those that are scored."""

    annotations: Path
    """COCO annotation file; of its boxes nothing is used."""
    images: Path
    """Folder its file names are relative to."""
    num_images: int = Field(64, ge=1)
    """int8 is calibrated on the first so many, all held in memory, and compared with PyTorch on a few that follow, or
    on some of them where none follow; other precisions are compared on the first few."""

    @property
    def coco(self) -> CocoSet:
        """The set."""
        return CocoSet(self.annotations, self.images)


class Quantization(Part):
    """How int8 is made of float32."""

    method: str = "minmax"
    """How the range of a layer's values is chosen: minmax, entropy or percentile."""
    keep_float: tuple[str, ...] = KEEP_FLOAT
    """Patterns of node or weight names whose convolutions stay float32."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_name(name, METHODS)


class ExportConfig(Part):
    """What the exported graph is like. Where a field says so it is for detectors only."""

    batch: int = Field(1, ge=1)
    """Images per run, fixed in the file."""
    precision: Precision = "fp32"
    """Of the networks; boxes and scores are float32 in any case. int8 is for detectors only: the convolutions."""
    image: Literal["float32", "uint8"] = "float32"
    """Type of the input's pixels, 0 to 255 in both."""
    runs_on: RunsOn = "any"
    """`any`: every engine builds it; `onnxruntime` and `openvino`: that one runs it faster on a CPU, TensorRT does not
    build it. For detectors only."""
    size_hw: tuple[int, int] | None = None
    """Height and width that the detector sees, multiples of 32; the model's own unless given. For detectors only."""
    input_hw: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of the input, any: it is scaled to the other inside the graph, its ratio kept, and boxes are in
    its pixels. That other one unless given. For detectors only."""
    nms_rounds: int | None = Field(None, ge=1)
    """Rounds of suppression where it is arithmetic, see FixedShapeDetector; 24, or twice what the compared images take
    where these come near it, unless given. For detectors only."""
    debug: bool = False
    """Add the output nms_converged, which says whether these rounds sufficed. For detectors only."""
    pictures: Pictures | None = None
    """What int8 is calibrated on, and what every file is compared on; random images unless given, in which a trained
    detector may find nothing. For detectors only."""
    int8: Quantization = Quantization()
    """Of the other precisions, left alone."""

    @model_validator(mode="after")
    def _int8_counts(self) -> "ExportConfig":
        if self.precision == "int8" and self.pictures is None:
            raise ValueError(
                "pictures: int8 is calibrated on some, got none; expected pictures=dict(annotations=..., images=...)"
            )
        if self.precision != "int8" and "int8" in self.model_fields_set:
            raise ValueError(f"int8: of no use, got precision {self.precision}; expected int8, or no such key")
        return self


_FOR_DETECTORS = {"runs_on", "size_hw", "input_hw", "nms_rounds", "debug", "pictures"}


@dataclass(frozen=True)
class Exported:
    """What `export_file` wrote."""

    compared: str
    """How the file stands to PyTorch, for people."""
    notes: tuple[str, ...] = ()
    """What to know of the file, one line each."""


def export_file(model: Path, settings: ExportConfig, folder: Path, mmdet: Path | None = None) -> Exported:
    """Write `model.onnx` and `deploy.json` into `folder`: boxes of a detector, class scores of a classifier.

    Args:
        model: Model file; with `mmdet`, a checkpoint.
        settings: What the graph is like.
        folder: Created; other files in it stay.
        mmdet: mmdet's config, where the model is none of ours.

    Raises:
        FileNotFoundError: If a file or a calibration picture is missing.
        ValueError: If model and settings do not fit each other, or a weight is not a finite number in that precision.
        RuntimeError: If the file does not give what PyTorch gives.
    """
    kind = "detector" if mmdet else read_card(model).kind
    if settings.pictures:
        check_coco(settings.pictures.coco)
    if kind == "classifier":
        return _export_classifier(model, settings, folder)
    detector, card = load_foreign(mmdet, model) if mmdet else load_detector(model)
    if settings.size_hw:
        card = replace(card, preprocessing={**card.preprocessing, "image_size_hw": settings.size_hw})
    also = {"mmdet": mmdet.name} if mmdet else {}
    return _export_detector(detector, card, model, settings, folder, also)


def _export_detector(
    detector: Any, card: ModelCard, model: Path, settings: ExportConfig, folder: Path, also: Mapping[str, Any]
) -> Exported:
    check_finite(model, detector, "train anew")
    height, width = card.preprocessing["image_size_hw"]
    examples, compared_on, quantize = _inputs(settings.input_hw or (height, width), settings)
    seen = reference_of(detector, (height, width), examples, settings.input_hw)
    nms_rounds = _nms_rounds(settings, seen, compared_on)
    plain = FixedShapeDetector(
        detector,
        (height, width),
        nms_rounds=nms_rounds,
        runs_on=settings.runs_on,
        debug=settings.debug,
        dtype=_DTYPES[settings.precision],
    )
    graph = ScalingDetector(plain, settings.input_hw) if settings.input_hw else plain
    also = {**also, "nms_rounds": nms_rounds} if settings.runs_on == "any" else also
    also = {**also, "network_hw": [height, width]} if settings.input_hw else also
    in_precision = f"{model} in {settings.precision}"
    check_finite(in_precision, graph, "take bf16 or fp32")
    check_range(in_precision, graph, examples)
    parity = write_deployment(
        graph,
        examples,
        graph.output_names,
        card,
        model,
        folder,
        precision=settings.precision,
        expected=seen.outputs,
        quantize=quantize,
        also={"compared_on": compared_on, "config": settings.model_dump(mode="json"), **also},
    )
    notes = _notes(parity, settings.precision, compared_on)
    notes += [] if detector.roi_head.bbox_roi_extractor.roi_layers[0].sampling_ratio else [_ADAPTIVE]
    notes += [] if card.preprocessing.get("keep_ratio", True) else [_STRETCHED]
    return Exported(_told(parity, compared_on), tuple(notes))


def _nms_rounds(settings: ExportConfig, seen: Reference, compared_on: str) -> int:
    """Return the rounds asked for, or safe ones; raise ValueError if those asked for do not reach the fixed point."""
    given = settings.nms_rounds
    if given is not None and settings.runs_on == "any" and given < seen.rounds:
        raise ValueError(f"nms_rounds: too few for {compared_on}, got {given}; expected at least {seen.rounds}")
    return given or seen.safe_rounds


def _export_classifier(model: Path, settings: ExportConfig, folder: Path) -> Exported:
    said = sorted({"precision"} if settings.precision == "int8" else settings.model_fields_set & _FOR_DETECTORS)
    if said:
        raise ValueError(
            f"{said[0]}: for detectors only, got {getattr(settings, said[0])!r} for {model}, which holds a classifier; "
            f"expected batch, image, or a precision of fp32, fp16, bf16"
        )
    net, card = load_classifier(model)
    check_finite(model, net, "train anew")
    graph = ClassScores(net, _DTYPES[settings.precision])
    side = card.preprocessing["image_size"]
    image = (torch.rand(settings.batch, 3, side, side) * 255).to(getattr(torch, settings.image))
    in_precision = f"{model} in {settings.precision}"
    check_finite(in_precision, graph, "take bf16 or fp32")
    check_range(in_precision, graph, [{"image": image}])
    compared_on = _images(settings.batch)
    parity = write_deployment(
        graph,
        [{"image": image}],
        ("scores",),
        card,
        model,
        folder,
        precision=settings.precision,
        reference=ClassScores(net, torch.float32),
        also={"compared_on": compared_on, "config": settings.model_dump(mode="json")},
    )
    return Exported(_told(parity, compared_on))


def _inputs(size_hw: tuple[int, int], settings: ExportConfig) -> _Inputs:
    if settings.pictures:
        return _of_pictures(size_hw, settings, settings.pictures)
    num = -(-_NUM_RANDOM // settings.batch)
    shape, dtype = (settings.batch, 3, *size_hw), getattr(torch, settings.image)
    image_hw = torch.tensor([size_hw] * settings.batch, dtype=torch.float32)
    examples = [{"image": (torch.rand(shape) * 255).to(dtype), "image_hw": image_hw} for _ in range(num)]
    return examples, _images(num * settings.batch), None


def _of_pictures(size_hw: tuple[int, int], settings: ExportConfig, told: Pictures) -> _Inputs:
    """Return the pictures to compare on, and what calibrates on others."""
    pictures = (inputs for _, inputs, _ in fitted_images(told.coco, size_hw, settings.image))
    is_int8 = settings.precision == "int8"
    calibrated = [*itertools.islice(pictures, told.num_images)] if is_int8 else []
    others = [*itertools.islice(pictures, _NUM_PICTURES)]
    batches = _batches(others or calibrated[:_NUM_PICTURES], settings.batch)
    examples = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    what = "others of" if is_int8 and others else "calibrated on, of" if is_int8 else "of"
    compared_on = f"{len(others) or min(len(calibrated), _NUM_PICTURES)} pictures {what} {told.annotations.name}"
    if not is_int8:
        return examples, compared_on, None
    quantize = partial(
        quantized_onnx,
        batches=_batches(calibrated, settings.batch),
        form="tensorrt" if settings.runs_on == "any" else "cpu",
        method=settings.int8.method,
        keep_float=settings.int8.keep_float,
    )
    return examples, compared_on, quantize


def _batches(pictures: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return [stacked(pictures[i : i + size], size) for i in range(0, len(pictures), size)]


def _images(num: int) -> str:
    return f"{num} random image{'s' if num > 1 else ''}"


def _notes(parity: Figures | None, precision: Precision, compared_on: str) -> list[str]:
    """Say where a file that was not refused is to be doubted."""
    if parity is None:
        return []
    agreed, found = parity["num_agreed"], parity["num_detections"]
    if not found:
        return [
            f"note: nothing was found in {compared_on}, so no box was compared; "
            f"--set pictures.annotations=FILE --set pictures.images=FOLDER compares on pictures"
        ]
    if agreed < _USUALLY_AGREED[precision] * found:
        return [
            f"WARNING: only {agreed} of {found} detections in {compared_on} are those of PyTorch in float32; "
            f"espalier deploy eval tells what that costs"
        ]
    return []


def _told(parity: Figures | None, compared_on: str) -> str:
    """Say how the file stands to PyTorch."""
    if parity is None:
        return "not compared with PyTorch: ONNX Runtime has no bfloat16 convolution on a CPU"
    if "difference" in parity:
        return f"scores differ from PyTorch's by {parity['difference']['scores']:.1g} at most on {compared_on}"
    if not parity["num_detections"]:
        return f"nothing compared with PyTorch: neither found anything in {compared_on}"
    return f"{parity['num_agreed']} of {parity['num_detections']} detections agree with PyTorch's in {compared_on}"
