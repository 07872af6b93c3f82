"""The config of `espalier deploy export`, checked before anything runs."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from classify.checkpoint import Side
from command.config import Part, check_name
from command.errors import RequestError
from deploy.deployment import Precision
from deploy.precision import KEEP_FLOAT, METHODS
from detect.data import CocoSet
from detect.fixed_shape import GraphRuntime

__all__ = ["FOR_DETECTORS", "ExportConfig", "Pictures", "Quantization"]


class Pictures(Part):
    """Images like those that the detector will run on, but none of those it is scored on."""

    annotations: Path
    """COCO annotation file, or list of VOC's images; its boxes only tell whether an image has more than
    `max_per_img`."""
    images: Path
    """Folder its file names are relative to."""
    num_images: int = Field(64, ge=1, le=10**6)
    """int8 is calibrated on this many images, all held in memory, and compared with PyTorch on a few that follow, or on
    some of the same if none follow; other precisions are compared on the first few."""

    @property
    def coco(self) -> CocoSet:
        """The set."""
        return CocoSet(self.annotations, self.images)


class Quantization(Part):
    """How fp32 is quantized to int8."""

    method: str = "minmax"
    """How the range of a layer's values is chosen: minmax, entropy or percentile."""
    keep_float: tuple[str, ...] = KEEP_FLOAT
    """Patterns of node or weight names whose convolutions stay fp32."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_name(name, METHODS)


class ExportConfig(Part):
    """Config of the exported graph. Some fields are for detectors only, as noted."""

    batch: int = Field(1, ge=1, le=4096)
    """Images per run, fixed in the file."""
    precision: Precision = "fp32"
    """Precision of the networks; boxes and scores are always float32. int8 is for detectors only, and quantizes their
    convolutions."""
    image: Literal["float32", "uint8"] = "float32"
    """Dtype of the input's pixels, 0 to 255 in both."""
    runtime: GraphRuntime = "any"
    """`any`: every engine builds it; `onnxruntime` and `openvino`: faster in that runtime on a CPU, but TensorRT cannot
    build it. For detectors only."""
    size_hw: tuple[Side, Side] | None = None
    """Height and width that the detector works at, multiples of 32; default: the model's. For detectors only."""
    input_hw: tuple[Side, Side] | None = None
    """Height and width of the input, any: the graph scales it to `size_hw`, keeping its ratio, and boxes are in its
    pixels. Default: `size_hw`. For detectors only."""
    nms_iterations: int | None = Field(None, ge=1, le=10_000)
    """Iterations of NMS where it is computed as arithmetic, see FixedShapeDetector. Default: 24, or twice what the
    compared images need if that is close to 24. For detectors only."""
    debug: bool = False
    """Add the output nms_converged: whether these iterations were enough. For detectors only."""
    pictures: Pictures | None = None
    """Images to calibrate int8 on, and to compare every file on. Default: random images, in which a trained detector
    may find nothing. For detectors only."""
    int8: Quantization = Quantization()
    """Used with precision int8 only."""

    @model_validator(mode="after")
    def _int8_counts(self) -> "ExportConfig":
        if self.precision == "int8" and self.pictures is None:
            raise RequestError(
                "pictures: int8 needs calibration images, got none; expected pictures=dict(annotations=..., images=...)"
            )
        if self.precision != "int8" and "int8" in self.model_fields_set:
            raise RequestError(
                f"int8: not used with another precision, got {self.precision}; drop this key, or set precision int8"
            )
        return self


FOR_DETECTORS = {"runtime", "size_hw", "input_hw", "nms_iterations", "debug", "pictures"}
"""Fields that are not used for classifiers."""
