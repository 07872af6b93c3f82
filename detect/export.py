"""Exports a model file as a deployed folder: one graph in the configured precision and shape, compared with PyTorch."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from classify.checkpoint import ModelCard, load_classifier, read_card
from classify.export import ClassScores, export_classifier
from command.errors import RequestError
from deploy.deployment import Precision
from deploy.fitting import stacked
from deploy.precision import quantized_onnx
from deploy.ranges import check_finite, check_range
from deploy.writing import Comparison, Origin, write_deployment
from detect.annotations import read_annotations
from detect.data import check_coco
from detect.detector_file import load_detector
from detect.evaluate import fitted_images
from detect.export_config import FOR_DETECTORS, ExportConfig, Pictures
from detect.fixed_shape import FixedShapeDetector, check_parts
from detect.foreign import MmdetSource
from detect.networks import NetworkOutputs
from detect.reference import Reference, reference_of
from detect.scaling import ScalingDetector

__all__ = ["Exported", "export_file", "module_from_file", "notes_on_limit"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
_ADAPTIVE = (
    "note: RoIAlign samples adaptively (sampling_ratio=0), which has no fixed shape; exported with sampling_ratio=2, "
    "compare the mAP with espalier deploy eval"
)
_STRETCHED = (
    "note: the config stretches images to its scale (keep_ratio=False); the export and deploy eval keep their ratio, "
    "compare the mAP with mmdet's own test"
)
_Inputs = tuple[list[dict[str, Tensor]], str, Callable[[Path, Path], object] | None]
"""Examples to compare on, their description, and a function that turns the exported file into the final one."""
_NUM_RANDOM, _NUM_PICTURES = 4, 8  # compared with PyTorch, at least and at most
_USUALLY_AGREED = {"fp32": 1.0, "fp16": 0.95, "int8": 0.5}


@dataclass(frozen=True)
class Exported:
    """Result of `export_file`."""

    parity: dict[str, Any] | None
    """Comparison with PyTorch, as in `deploy.json`."""
    compared: str
    """The same in one human-readable line."""
    notes: tuple[str, ...] = ()
    """Notes on the file, one line each."""


def export_file(
    model: str | Path, settings: ExportConfig, folder: str | Path, mmdet: MmdetSource | None = None
) -> Exported:
    """Write `model.onnx` and `deploy.json` into `folder`: boxes of a detector, class scores of a classifier.

    Args:
        model: Model file; with `mmdet`, a checkpoint.
        settings: Config of the export.
        folder: Created; other files in it stay.
        mmdet: mmdet's config, for a detector of mmdet's own parts.

    Raises:
        MissingFileError: If a file or a calibration image is missing.
        RequestError: If model and settings do not fit each other, or a weight is not finite in that precision.
        WorkError: If the outputs of the file differ from PyTorch's.
    """
    model, folder = Path(model), Path(folder)
    kind = "detector" if mmdet else read_card(model).kind
    if settings.pictures:
        check_coco(settings.pictures.coco)
    if kind == "classifier":
        return _export_classifier(model, settings, folder)
    detector, card = load_detector(model, mmdet)
    check_parts(detector)
    if settings.size_hw:
        card = replace(card, preprocessing=replace(card.preprocessing, image_hw=settings.size_hw))
    return _export_detector(detector, card, model, settings, folder, _file_name(mmdet))


def _file_name(mmdet: MmdetSource | None) -> str | None:
    return Path(mmdet.filename if isinstance(mmdet, Config) else mmdet).name if mmdet else None


def module_from_file(
    path: str | Path, mmdet: MmdetSource | None = None, size_hw: tuple[int, int] | None = None
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the module that `export_file` writes with default settings, and random inputs of batch 1.

    Args:
        path: Model file.
        mmdet: mmdet's config, for a detector of mmdet's own parts.
        size_hw: Height and width that a detector works at; None for the model's.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is not a model file.
    """
    if not mmdet and read_card(path).kind == "classifier":
        net, card = load_classifier(path)
        return ClassScores(net, torch.float32), (torch.rand(1, 3, *card.preprocessing.image_hw) * 255,)
    detector, card = load_detector(path, mmdet)
    graph = FixedShapeDetector(detector, size_hw or card.preprocessing.image_hw)
    return graph, graph.example_inputs()


def _export_detector(
    detector: Any, card: ModelCard, model: Path, settings: ExportConfig, folder: Path, mmdet: str | None
) -> Exported:
    image_hw, precision = card.preprocessing.image_hw, settings.precision
    examples, images, quantize = _inputs(settings.input_hw or image_hw, settings)
    found = reference_of(detector, image_hw, examples, settings.input_hw)
    nms_iterations = _nms_iterations(settings, found, images)

    def graph_in(dtype: torch.dtype) -> FixedShapeDetector:
        return FixedShapeDetector(
            detector,
            image_hw,
            nms_iterations=nms_iterations,
            runtime=settings.runtime,
            debug=settings.debug,
            dtype=dtype,
        )

    def networks() -> tuple[nn.Module, nn.Module]:
        both = (NetworkOutputs(graph_in(dtype), settings.input_hw) for dtype in (_DTYPES[precision], torch.float32))
        return next(both), next(both)

    plain = graph_in(_DTYPES[precision])
    graph = ScalingDetector(plain, settings.input_hw) if settings.input_hw else plain
    in_precision = f"{model} in {precision}"
    check_finite(in_precision, graph.state_dict(), "use bf16 or fp32")
    check_range(in_precision, graph, examples)
    origin = Origin(
        "detector",
        card.classes,
        model,
        settings.model_dump(mode="json"),
        precision,
        mmdet=mmdet,
        nms_iterations=nms_iterations if settings.runtime == "any" else None,
        network_hw=image_hw if settings.input_hw else None,
    )
    comparison = Comparison(examples, images, expected=found.outputs, networks=networks)
    parity = write_deployment(graph, origin, comparison, folder, quantize)
    notes = _notes(parity, precision, images)
    notes += [] if detector.roi_head.bbox_roi_extractor.roi_layers[0].sampling_ratio else [_ADAPTIVE]
    notes += [] if card.preprocessing.keep_ratio else [_STRETCHED]
    if settings.pictures:
        boxes = read_annotations(settings.pictures.annotations)["annotations"]
        notes += notes_on_limit(detector.roi_head.test_cfg.max_per_img, boxes)
    return Exported(parity, _compared(parity, images), tuple(notes))


def notes_on_limit(most: int, boxes: list[dict[str, Any]]) -> list[str]:
    """Return a note on images with more objects than the file can find in one.

    Args:
        most: `max_per_img` of the file.
        boxes: COCO annotations.
    """
    counts = Counter(row["image_id"] for row in boxes if not row["iscrowd"])
    crowded = [image_id for image_id, count in counts.items() if count > most]
    if not crowded:
        return []
    return [
        f"note: {len(crowded)} images have more than {most} objects, first image {crowded[0]} with "
        f"{counts[crowded[0]]}: the file finds at most {most} in one (max_per_img), and mAP counts 100"
    ]


def _nms_iterations(settings: ExportConfig, found: Reference, images: str) -> int:
    """Return the configured iterations, by default enough; raise RequestError if NMS does not converge with them."""
    given = settings.nms_iterations
    if given is not None and settings.runtime == "any" and given < found.iterations:
        raise RequestError(f"nms_iterations: too few for {images}, got {given}; expected at least {found.iterations}")
    return given or found.safe_iterations


def _export_classifier(model: Path, settings: ExportConfig, folder: Path) -> Exported:
    given = sorted({"precision"} if settings.precision == "int8" else settings.model_fields_set & FOR_DETECTORS)
    if given:
        raise RequestError(
            f"{given[0]}: for detectors only, got {getattr(settings, given[0])!r} for the classifier {model}; expected "
            f"only batch, image, and a precision of fp32, fp16 or bf16"
        )
    parity, images = export_classifier(
        model,
        folder,
        batch=settings.batch,
        precision=settings.precision,
        image=settings.image,
        config=settings.model_dump(mode="json"),
    )
    return Exported(parity, _compared(parity, images))


def _inputs(size_hw: tuple[int, int], settings: ExportConfig) -> _Inputs:
    if settings.pictures:
        return _of_pictures(size_hw, settings, settings.pictures)
    num = -(-_NUM_RANDOM // settings.batch)
    shape, dtype = (settings.batch, 3, *size_hw), getattr(torch, settings.image)
    image_hw = torch.tensor([size_hw] * settings.batch, dtype=torch.float32)
    examples = [{"image": (torch.rand(shape) * 255).to(dtype), "image_hw": image_hw} for _ in range(num)]
    return examples, _images(num * settings.batch), None


def _of_pictures(size_hw: tuple[int, int], settings: ExportConfig, source: Pictures) -> _Inputs:
    """Return images to compare on, and for int8 a function that calibrates on others."""
    images = (inputs for _, inputs, _ in fitted_images(source.coco, size_hw, settings.image))
    is_int8 = settings.precision == "int8"
    calibrated = [*itertools.islice(images, source.num_images)] if is_int8 else []
    others = [*itertools.islice(images, _NUM_PICTURES)]
    batches = _batches(others or calibrated[:_NUM_PICTURES], settings.batch)
    examples = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    kind = ("" if others else "calibration ") + "images"
    rest = " not used for calibration" if is_int8 and others else ""
    num = len(others) or min(len(calibrated), _NUM_PICTURES)
    compared_on = f"{num} {kind} of {source.annotations.name}{rest}"
    if not is_int8:
        return examples, compared_on, None
    quantize = partial(
        quantized_onnx,
        batches=_batches(calibrated, settings.batch),
        runtime=settings.runtime,
        method=settings.int8.method,
        keep_float=settings.int8.keep_float,
    )
    return examples, compared_on, quantize


def _batches(pictures: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return [stacked(pictures[i : i + size], size) for i in range(0, len(pictures), size)]


def _images(num: int) -> str:
    return f"{num} random image{'s' if num > 1 else ''}"


def _notes(parity: dict[str, Any] | None, precision: Precision, compared_on: str) -> list[str]:
    """Return notes on how reliable the comparison is."""
    if parity is None:
        return []
    agreed, found = parity["num_agreed"], parity["num_detections"]
    if "networks" in parity:
        return [
            "note: all scores are nearly equal, as in an untrained detector, so that rounding decides which boxes are "
            "kept; compared the networks' outputs before NMS instead"
        ]
    if not found:
        return [
            f"note: no boxes were compared, none were found in {compared_on}; to compare on real images, add "
            f"--set pictures.annotations=FILE --set pictures.images=FOLDER"
        ]
    if agreed < _USUALLY_AGREED[precision] * found:
        return [
            f"warning: only {agreed} of {found} detections in {compared_on} agree with PyTorch in fp32; "
            f"measure the mAP with espalier deploy eval"
        ]
    return []


def _compared(parity: dict[str, Any] | None, images: str) -> str:
    """Return the comparison with PyTorch in one line."""
    if parity is None:
        return "not compared with PyTorch: ONNX Runtime has no bf16 convolution on a CPU"
    if "difference" in parity:
        return f"scores differ from PyTorch's by {parity['difference']['scores']:.1g} at most on {images}"
    if not parity["num_detections"]:
        return f"no boxes compared with PyTorch: none found in {images}"
    counted = f"{parity['num_agreed']} of {parity['num_detections']} detections agree with PyTorch's in {images}"
    if "networks" not in parity:
        return counted
    largest = max(parity["networks"].values())
    return f"the networks' outputs before NMS differ from PyTorch's by {largest:.1g} at most; {counted}"
