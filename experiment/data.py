"""The data of an experiment: checked where it is given, generated as stages where it is not."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from classify.data import check_folder
from classify.data import fingerprint as folder_fingerprint
from classify.synthetic import write_shapes
from command.errors import RequestError
from detect.data import CocoSet, fingerprint, num_crops, read_annotations, write_crops
from detect.synthetic import write_scenes
from experiment.config import CocoData, CropsData, ExperimentConfig, FolderData, ScenesData, ShapesData
from experiment.stages import Figures, Stage, StageStore

__all__ = ["Data", "check_data", "plan_data"]


@dataclass(frozen=True)
class Data:
    """Location of the data, which exists once `stages` are done."""

    images: Path
    """Image folder the classifier learns from."""
    train: CocoSet
    val: CocoSet
    fingerprint: str
    """Hash of all the data."""
    stages: tuple[Stage, ...]
    num_images: int
    """About how many images the classifier trains on."""
    num_scenes: int
    """How many the detector trains on."""


def check_data(config: ExperimentConfig) -> None:
    """Check the data that is given, before any work.

    Raises:
        MissingFileError: If a folder, annotation file or image is missing.
        RequestError: If something in it is wrong, or training and validation classes differ.
    """
    boxes, images = config.detection.data, config.classification.data
    if isinstance(boxes, CocoData):
        boxes.check()
    if isinstance(images, FolderData):
        check_folder(images.root)
    if isinstance(images, CropsData) and isinstance(boxes, CocoData):
        for coco in (boxes.train, boxes.val):
            if num_crops(coco) == 0:
                raise RequestError(f"{coco.annotations}: no object is large enough to be cut out; give an image folder")


def plan_data(config: ExperimentConfig, store: StageStore) -> Data:
    """Plan where the data will be; nothing is written."""
    boxes, images = config.detection.data, config.classification.data
    stages: list[Stage] = []
    if isinstance(boxes, CocoData):
        train, val = boxes.train, boxes.val
        boxes_print = fingerprint(train) + fingerprint(val)
        annotations = read_annotations(train.annotations)
        num_scenes, num_objects = len(annotations["images"]), len(annotations["annotations"])
    else:
        stages.append(_scenes(boxes, config.detection.model.image_size_hw))
        train, val = (_scene_set(store.folder(stages[0]), split) for split in ("train", "val"))
        boxes_print = stages[0].hash
        num_scenes, num_objects = boxes.num_train, 3 * boxes.num_train
    if isinstance(images, FolderData):
        images_root, images_print = images.root, folder_fingerprint(images.root)
        num_images = sum(1 for path in (images.root / "train").rglob("*") if path.is_file())
    else:
        if isinstance(images, ShapesData):
            made, num_images = _shapes(images, config), images.num_train
        else:
            made, num_images = _crops(train, val, boxes_print, tuple(stages)), num_objects
        images_root, images_print = store.folder(made), made.hash
        stages.append(made)
    both = hashlib.sha256(json.dumps([boxes_print, images_print]).encode()).hexdigest()[:16]
    return Data(images_root, train, val, both, tuple(stages), num_images, num_scenes)


def _scene_set(folder: Path, split: str) -> CocoSet:
    return CocoSet(folder / split / "instances.json", folder / split / "images")


def _scenes(data: ScenesData, size_hw: tuple[int, int]) -> Stage:
    def work(folder: Path, progress: object) -> Figures:
        write_scenes(folder / "train", data.num_train, size_hw, data.seed)
        write_scenes(folder / "val", data.num_val, size_hw, data.seed + 1)
        return {"num_train": data.num_train, "num_val": data.num_val}

    return Stage("scenes", {**data.model_dump(), "size_hw": list(size_hw)}, (), work)


def _shapes(data: ShapesData, config: ExperimentConfig) -> Stage:
    size = config.classification.image_size

    def work(folder: Path, progress: object) -> Figures:
        write_shapes(folder, data.num_train, data.num_val, size, data.seed)
        return {"num_train": data.num_train, "num_val": data.num_val}

    return Stage("shapes", {**data.model_dump(), "image_size": size}, (), work)


def _crops(train: CocoSet, val: CocoSet, boxes_print: str, inputs: tuple[Stage, ...]) -> Stage:
    def work(folder: Path, progress: object) -> Figures:
        splits = {"train": train, "val": val}
        return {f"num_{split}": write_crops(coco, folder / split) for split, coco in splits.items()}

    return Stage("crops", {"boxes": boxes_print}, inputs, work)
