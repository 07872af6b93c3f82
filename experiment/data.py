"""The data of an experiment in four parts: checked where it is given, made by stages where it is generated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from classify.data import Split
from classify.image_data import FolderData, GivenImages, ImageData, ShapesData
from classify.synthetic import SHAPES, write_split
from command.errors import RequestError
from command.notes import note
from detect.annotations import read_annotations
from detect.config import GivenBoxes
from detect.crops import check_crops, crop_classes, write_crops
from detect.data import CocoSet, GivenSet, fingerprint
from detect.given_data import given_fingerprint
from detect.synthetic import write_scenes
from experiment.config import CropsData, Detection, ExperimentConfig, ScenesData
from experiment.stages import Figures, Stage, StageStore

__all__ = ["Boxes", "Data", "Part", "check_data", "inputs_of", "plan_data", "read_settings"]

Place = TypeVar("Place", GivenImages, CocoSet)


@dataclass(frozen=True)
class Part(Generic[Place]):
    """One part of the data: what a step that reads it depends on."""

    place: Place
    """What it is once its stage is done: for generated images, a folder with their split alone in it."""
    fingerprint: str | None
    """Hash of its content; None if a stage makes it."""
    stage: Stage | None

    @property
    def key(self) -> str:
        """What identifies it: the hash of its content, or of the stage that makes it."""
        return self.fingerprint or (self.stage.hash if self.stage else "")


@dataclass(frozen=True)
class Boxes:
    """What detectors learn from and are evaluated on."""

    train: Part[CocoSet]
    val: Part[CocoSet]
    classes: tuple[str, ...]
    num_scenes: int
    """How many images the detector trains on."""
    num_objects: int
    """About how many boxes are in them."""


@dataclass(frozen=True)
class Data:
    """All data of an experiment."""

    train_images: Part[GivenImages]
    val_images: Part[GivenImages]
    image_classes: tuple[str, ...]
    num_images: int
    """About how many images the classifier trains on."""
    boxes: Boxes | None
    """None where there are no detectors."""

    @property
    def box_classes(self) -> tuple[str, ...]:
        """What detectors find."""
        assert self.boxes is not None
        return self.boxes.classes

    @property
    def train_boxes(self) -> Part[CocoSet]:
        """What detectors learn from."""
        assert self.boxes is not None
        return self.boxes.train

    @property
    def val_boxes(self) -> Part[CocoSet]:
        """What detectors are evaluated on."""
        assert self.boxes is not None
        return self.boxes.val

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that make it, in an order in which they can run."""
        boxes = (self.boxes.train, self.boxes.val) if self.boxes else ()
        return tuple(part.stage for part in (*boxes, self.train_images, self.val_images) if part.stage)


def read_settings(parts: tuple[Part[Any], ...]) -> dict[str, Any]:
    """Return the setting that names the given data that a stage reads; generated data is among its inputs."""
    return {"data": [part.fingerprint for part in parts if part.fingerprint]}


def inputs_of(parts: tuple[Part[Any], ...], parent: Stage | None) -> tuple[Stage, ...]:
    """Return the stages that a stage reads: those that make its data, and the one before it."""
    return (*(part.stage for part in parts if part.stage), *((parent,) if parent else ()))


def check_data(config: ExperimentConfig) -> None:
    """Check the data that is given, before any work.

    Raises:
        MissingFileError: If a folder, annotation file or image is missing.
        RequestError: If something in it is wrong, or training and validation classes differ.
    """
    boxes, images = config.detection and config.detection.data, config.classification.data
    classes = boxes.check() if isinstance(boxes, GivenBoxes) else SHAPES
    if isinstance(images, ImageData):
        images.check()
    if isinstance(images, CropsData) and isinstance(boxes, GivenBoxes):
        if isinstance(boxes.train, GivenSet) and len(boxes.train.sets) > 1:
            raise RequestError(
                f"classification.data: crops of one training set, got {len(boxes.train.sets)}; expected 1"
            )
        check_crops(boxes.train)
        check_crops(boxes.val)
        if len(classes) == 1:
            note("classification.data: one class alone teaches nothing; squares of background are the second")


def plan_data(config: ExperimentConfig, store: StageStore) -> Data:
    """Plan where the data will be; nothing is written.

    Raises:
        RequestError: If an image of given data does not decode.
    """
    detection = config.detection
    boxes = (
        Boxes(_boxes(detection, store, "train"), _boxes(detection, store, "val"), *_counted(detection))
        if detection
        else None
    )
    return Data(
        _images(config, store, "train", boxes.train if boxes else None),
        _images(config, store, "val", boxes.val if boxes else None),
        _image_classes(config),
        _num_images(config, boxes),
        boxes,
    )


def _boxes(detection: Detection, store: StageStore, split: Split) -> Part[CocoSet]:
    data = detection.data
    if isinstance(data, GivenBoxes):
        coco = data.train if split == "train" else data.val
        return Part(coco, given_fingerprint(coco) if isinstance(coco, GivenSet) else fingerprint(coco), None)
    stage = _scenes(data, detection.image_hw, split)
    folder = store.folder(stage)
    return Part(CocoSet(folder / "instances.json", folder / "images"), None, stage)


def _images(
    config: ExperimentConfig, store: StageStore, split: Split, boxes: Part[CocoSet] | None
) -> Part[GivenImages]:
    data = config.classification.data
    if isinstance(data, GivenImages):
        return Part(data, data.fingerprint(split), None)
    if isinstance(data, ShapesData):
        stage = _shapes(data, config.classification.image_size, split)
    else:
        assert boxes is not None
        stage = _crops(boxes, split)
    return Part(FolderData(type="folder", root=store.folder(stage)), None, stage)


def _counted(detection: Detection) -> tuple[tuple[str, ...], int, int]:
    """Return the classes of the boxes, and how many images and about how many boxes the detector trains on."""
    data = detection.data
    if isinstance(data, ScenesData):
        return SHAPES, data.num_train, 3 * data.num_train
    sets = data.train.sets if isinstance(data.train, GivenSet) else (data.train,)
    files = [read_annotations(one.annotations) for one in sets]
    num_images, num_boxes = (sum(len(rows[name]) for rows in files) for name in ("images", "annotations"))
    return tuple(row["name"] for row in files[0]["categories"]), num_images, num_boxes


def _image_classes(config: ExperimentConfig) -> tuple[str, ...]:
    data, boxes = config.classification.data, config.detection and config.detection.data
    if isinstance(data, ImageData):
        return data.check()
    if isinstance(data, CropsData) and isinstance(boxes, GivenBoxes):
        categories = read_annotations(boxes.train.annotations)["categories"]
        return tuple(sorted(crop_classes(categories).values()))
    return SHAPES


def _num_images(config: ExperimentConfig, boxes: Boxes | None) -> int:
    data = config.classification.data
    if isinstance(data, GivenImages):
        images: Any = data.images("train", config.classification.image_size)
        return len(images)
    if isinstance(data, ShapesData):
        return data.num_train
    return boxes.num_objects if boxes else 0


def _scenes(data: ScenesData, size_hw: tuple[int, int], split: Split) -> Stage:
    is_train = split == "train"
    num, seed = (data.num_train, data.seed) if is_train else (data.num_val, data.seed + 1)

    def work(folder: Path, progress: object) -> Figures:
        write_scenes(folder, num, size_hw, seed)
        return {"num": num}

    return Stage(f"{split}_scenes", {"num": num, "seed": seed, "size_hw": list(size_hw)}, (), work)


def _shapes(data: ShapesData, image_size: int, split: Split) -> Stage:
    is_train = split == "train"
    num, seed = (data.num_train, data.seed) if is_train else (data.num_val, data.seed + 1)

    def work(folder: Path, progress: object) -> Figures:
        write_split(folder / split, num, image_size, seed)
        return {"num": num}

    return Stage(f"{split}_shapes", {"num": num, "seed": seed, "image_size": image_size}, (), work)


def _crops(boxes: Part[CocoSet], split: Split) -> Stage:
    def work(folder: Path, progress: object) -> Figures:
        return {"num": write_crops(boxes.place, folder / split)}

    return Stage(f"{split}_crops", {"boxes": boxes.fingerprint}, (boxes.stage,) if boxes.stage else (), work)
