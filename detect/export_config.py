"""What `espalier deploy export` takes, checked before anything runs."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from command.config import Part, check_name
from command.errors import RequestError
from deploy.deployment import Precision
from deploy.precision import KEEP_FLOAT, METHODS
from detect.data import CocoSet
from detect.fixed_shape import GraphRuntime

__all__ = ["FOR_DETECTORS", "ExportConfig", "Pictures", "Quantization"]


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
    runtime: GraphRuntime = "any"
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
            raise RequestError(
                "pictures: int8 is calibrated on some, got none; expected pictures=dict(annotations=..., images=...)"
            )
        if self.precision != "int8" and "int8" in self.model_fields_set:
            raise RequestError(f"int8: of no use, got precision {self.precision}; expected int8, or no such key")
        return self


FOR_DETECTORS = {"runtime", "size_hw", "input_hw", "nms_rounds", "debug", "pictures"}
"""Fields that a classifier's export has no use for."""
