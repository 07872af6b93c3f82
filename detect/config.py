"""The config of `espalier detect train`, checked before anything runs."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from classify.config import Dense, Finetune, OwnCode
from classify.schedule import Schedule
from classify.tracking import Backend
from command.config import Part, Seed, Threads
from command.errors import MissingFileError, RequestError
from detect.data import CocoSet, check_coco
from detect.model import DetectorSettings
from detect.voc import voc_images

__all__ = [
    "AnyBoxes",
    "CocoData",
    "DetectorTraining",
    "FinetuneDetector",
    "GivenBoxes",
    "ScenesData",
    "Transfer",
    "VocData",
]


class ScenesData(Part):
    """Generated scenes of coloured shapes, of the detector's image size."""

    type: Literal["scenes"] = "scenes"
    num_train: int = Field(300, ge=1, le=10**7)
    num_val: int = Field(60, ge=1, le=10**7)
    seed: Seed = 0


class GivenBoxes(Part, ABC):
    """Two sets of images with boxes that are there, not generated."""

    type: str
    root: Path
    """The other paths are relative to it."""
    strict: bool = False
    """Refuse faults of annotation files that are otherwise repaired or left out, and told."""

    @property
    @abstractmethod
    def train(self) -> CocoSet:
        """The training set."""

    @property
    @abstractmethod
    def val(self) -> CocoSet:
        """The validation set."""

    def check(self) -> tuple[str, ...]:
        """Check both sets; return the class names in the order of their labels.

        Raises:
            MissingFileError: If a folder, annotation file or image is missing.
            RequestError: If a set is invalid, or their classes differ.
        """
        if not self.root.is_dir():
            raise MissingFileError(f"{self.root}: no such folder; set data.root to a {self.type.upper()}-format folder")
        train, val = (check_coco(coco, self.strict) for coco in (self.train, self.val))
        if train != val:
            got, expected = self.val.annotations, self.train.annotations
            raise RequestError(
                f"{got}: categories differ from those of {expected}; expected the same, in the same order"
            )
        return train


class CocoData(GivenBoxes):
    """Any folder in COCO format."""

    type: Literal["coco"]
    train_annotations: Path = Path("annotations/instances_train2017.json")
    train_images: Path = Path("train2017")
    val_annotations: Path = Path("annotations/instances_val2017.json")
    val_images: Path = Path("val2017")

    @property
    def train(self) -> CocoSet:
        """The training set."""
        return CocoSet(self.root / self.train_annotations, self.root / self.train_images)

    @property
    def val(self) -> CocoSet:
        """The validation set."""
        return CocoSet(self.root / self.val_annotations, self.root / self.val_images)


class VocData(GivenBoxes):
    """VOCdevkit: in it VOC2007 with Annotations, ImageSets and JPEGImages, or a folder of one's own like it."""

    type: Literal["voc"]
    train_list: Path = Path("VOC2007/ImageSets/Main/trainval.txt")
    val_list: Path = Path("VOC2007/ImageSets/Main/test.txt")

    @property
    def train(self) -> CocoSet:
        """The training set."""
        return self._set(self.train_list)

    @property
    def val(self) -> CocoSet:
        """The validation set."""
        return self._set(self.val_list)

    def _set(self, image_set: Path) -> CocoSet:
        path = self.root / image_set
        return CocoSet(path, voc_images(path))


AnyBoxes = ScenesData | CocoData | VocData
"""What detectors learn from and are evaluated on."""


class Transfer(Part):
    """Start from a classifier's backbone."""

    type: Literal["transfer"]
    file: Path
    """Model file of a (slim) classifier; its head is not used."""
    backbone: OwnCode = None

    @property
    def code(self) -> str | None:
        """As of `Dense`."""
        return self.backbone


class FinetuneDetector(Finetune):
    """Start from the weights of a detector, slim or dense."""

    mmdet: Path | None = None
    """mmdet's config, for a checkpoint of mmdet or a model file of mmdet's own parts."""


class DetectorTraining(Part):
    """Config of `espalier detect train`."""

    start: Annotated[Transfer | FinetuneDetector | Dense, Field(discriminator="type")]
    """Source of the architecture and weights of the backbone, or of the whole detector."""
    data: Annotated[AnyBoxes, Field(discriminator="type")]
    model: DetectorSettings = DetectorSettings()
    """The detector around the backbone; not used when a detector is fine-tuned, which has its own settings."""
    schedule: Schedule
    seed: Seed = 0
    num_threads: Threads = 1
    """CPU threads of torch; the weights depend on it."""
    tracking: tuple[Backend, ...] = ()
    """Where losses, rates and figures are written while training, besides the curve."""

    @model_validator(mode="after")
    def _settings_count(self) -> "DetectorTraining":
        if isinstance(self.start, Finetune) and "model" in self.model_fields_set:
            raise RequestError(f"model: not used with finetune, got settings; drop them, {self.start.file} has its own")
        return self
