"""What `espalier deploy export` is told, and how it is done: a model becomes one graph in the precision asked for."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from classify.checkpoint import ModelCard, load_classifier, read_card
from classify.config import Part, check_name
from classify.data import MEAN, STD
from deploy import quantized_onnx
from deploy.precision import KEEP_FLOAT, METHODS
from detect import load_detector
from detect.data import CocoSet, check_coco
from detect.evaluate import fitted_images
from detect.fitting import stacked
from detect.fixed_shape import NMS_ROUNDS, FixedShapeDetector, RunsOn
from detect.foreign import load_foreign
from experiment.deployment import Precision, write_deployment
from experiment.stages import Figures

__all__ = ["CalibrationPictures", "ExportConfig", "Exported", "export_file"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
_ADAPTIVE = (
    "note: RoIAlign samples adaptively (sampling_ratio=0), which has no fixed shape; exported with sampling_ratio=2: "
    "compare the mAP with espalier deploy eval"
)
_Inputs = tuple[list[dict[str, Tensor]], str, Callable[[Path, Path], object] | None]
"""Examples to compare on, what they are, and what makes the file in the end of the exported one."""
_NUM_RANDOM, _NUM_PICTURES = 4, 8  # compared with PyTorch, at least and at most


class CalibrationPictures(Part):
    """The pictures that tell which values the layers take: like those to come, but none of those that are scored."""

    annotations: Path
    """COCO annotation file; of its boxes nothing is used."""
    images: Path
    """Folder its file names are relative to."""
    num_images: int = Field(64, ge=1)
    """The first so many; all are held in memory. With the few that follow them the file is compared with PyTorch."""
    method: str = "minmax"
    """How the range of a layer's values is chosen: minmax, entropy or percentile."""
    keep_float: tuple[str, ...] = KEEP_FLOAT
    """Patterns of node or weight names whose convolutions stay float32."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_name(name, METHODS)

    @property
    def coco(self) -> CocoSet:
        """The set."""
        return CocoSet(self.annotations, self.images)


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
    """Height and width of the input, multiples of 32; the model's own unless given. For detectors only."""
    nms_rounds: int = Field(NMS_ROUNDS, ge=1)
    """Rounds of suppression where it is arithmetic, see FixedShapeDetector. For detectors only."""
    debug: bool = False
    """Add the output nms_converged, which says whether these rounds sufficed. For detectors only."""
    calibration: CalibrationPictures | None = None
    """For int8; of the other precisions, None."""

    @model_validator(mode="after")
    def _calibration_counts(self) -> "ExportConfig":
        if self.precision == "int8" and self.calibration is None:
            raise ValueError(
                "calibration: int8 needs pictures, got none; expected calibration=dict(annotations=..., images=...)"
            )
        if self.precision != "int8" and self.calibration:
            raise ValueError(f"calibration: of no use, got one; expected none, {self.precision} is not calibrated")
        return self


_FOR_DETECTORS = {"runs_on", "size_hw", "nms_rounds", "debug", "calibration"}


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
    if settings.calibration:
        check_coco(settings.calibration.coco)
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
    _check_finite(model, detector, "train anew")
    make = partial(
        FixedShapeDetector,
        detector,
        tuple(card.preprocessing["image_size_hw"]),
        nms_rounds=settings.nms_rounds,
        runs_on=settings.runs_on,
        debug=settings.debug,
    )
    graph = make(dtype=_DTYPES[settings.precision])
    _check_finite(f"{model} in {settings.precision}", graph, "take bf16 or fp32")
    examples, compared_on, quantize = _inputs(graph, settings)
    parity = write_deployment(
        graph,
        examples,
        graph.output_names,
        card,
        model,
        folder,
        precision=settings.precision,
        reference=graph if graph.dtype == torch.float32 else make(),
        quantize=quantize,
        also={"compared_on": compared_on, "config": settings.model_dump(mode="json"), **also},
    )
    sampling_ratio = detector.roi_head.bbox_roi_extractor.roi_layers[0].sampling_ratio
    return Exported(_told(parity, compared_on), () if sampling_ratio else (_ADAPTIVE,))


def _export_classifier(model: Path, settings: ExportConfig, folder: Path) -> Exported:
    said = sorted({"precision"} if settings.precision == "int8" else settings.model_fields_set & _FOR_DETECTORS)
    if said:
        raise ValueError(
            f"{said[0]}: for detectors only, got {getattr(settings, said[0])!r} for {model}, which holds a classifier; "
            f"expected batch, image, or a precision of fp32, fp16, bf16"
        )
    net, card = load_classifier(model)
    _check_finite(model, net, "train anew")
    graph = _Scores(net, _DTYPES[settings.precision])
    _check_finite(f"{model} in {settings.precision}", graph, "take bf16 or fp32")
    side = card.preprocessing["image_size"]
    image = (torch.rand(settings.batch, 3, side, side) * 255).to(getattr(torch, settings.image))
    compared_on = _images(settings.batch)
    parity = write_deployment(
        graph,
        [{"image": image}],
        ("scores",),
        card,
        model,
        folder,
        precision=settings.precision,
        reference=_Scores(net, torch.float32),
        also={"compared_on": compared_on, "config": settings.model_dump(mode="json")},
    )
    return Exported(_told(parity, compared_on))


class _Scores(nn.Module):
    """A classifier with ImageNet's normalisation in front; the one given is left as it is."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        # BatchNorm with fixed statistics is just that normalisation
        self.normalise = nn.BatchNorm2d(3, eps=0.0, affine=False)
        self.normalise.running_mean, self.normalise.running_var = torch.tensor(MEAN), torch.tensor(STD).square()
        # in half precision BatchNorm is folded here: the exporter folds it too, but leaves float32 weights
        copied = copy.deepcopy(net) if dtype == torch.float32 else fuse(net)
        self.net, self.dtype = copied.to(dtype), dtype
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.net(self.normalise(image.float()).to(self.dtype))
        return scores.float()


def _check_finite(subject: Path | str, net: nn.Module, remedy: str) -> None:
    for name, tensor in net.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{subject}: weight {name} got NaN or infinity; expected finite numbers, {remedy}")


def _inputs(graph: FixedShapeDetector, settings: ExportConfig) -> _Inputs:
    if settings.calibration:
        return _pictures(graph, settings, settings.calibration)
    num = -(-_NUM_RANDOM // settings.batch)
    dtype = getattr(torch, settings.image)
    drawn = (graph.example_inputs(settings.batch, dtype) for _ in range(num))
    examples = [dict(zip(graph.input_names, tensors, strict=True)) for tensors in drawn]
    return examples, _images(num * settings.batch), None


def _pictures(graph: FixedShapeDetector, settings: ExportConfig, told: CalibrationPictures) -> _Inputs:
    """Return the pictures after those to calibrate on, or these where none follow; and what calibrates."""
    pictures = (inputs for _, inputs, _ in fitted_images(told.coco, graph.size_hw, settings.image))
    calibrated, others = ([*itertools.islice(pictures, num)] for num in (told.num_images, _NUM_PICTURES))
    compared = others or calibrated[:_NUM_PICTURES]
    examples = [
        {name: torch.from_numpy(array) for name, array in batch.items()} for batch in _batches(compared, settings.batch)
    ]
    quantize = partial(
        quantized_onnx,
        batches=_batches(calibrated, settings.batch),
        form="tensorrt" if settings.runs_on == "any" else "cpu",
        method=told.method,
        keep_float=told.keep_float,
    )
    what = "others" if others else "some that it was calibrated on,"
    return examples, f"{len(compared)} pictures, {what} of {told.annotations.name}", quantize


def _batches(pictures: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return [stacked(pictures[i : i + size], size) for i in range(0, len(pictures), size)]


def _images(num: int) -> str:
    return f"{num} random image{'s' if num > 1 else ''}"


def _told(parity: Figures | None, compared_on: str) -> str:
    """Say how the file stands to PyTorch."""
    if parity is None:
        return "not compared with PyTorch: ONNX Runtime has no bfloat16 convolution on a CPU"
    if "difference" in parity:
        return f"scores differ from PyTorch's by {parity['difference']['scores']:.1g} at most on {compared_on}"
    if not parity["num_detections"]:
        return f"nothing compared with PyTorch: neither found anything in {compared_on}"
    return f"{parity['num_agreed']} of {parity['num_detections']} detections agree with PyTorch's in {compared_on}"
