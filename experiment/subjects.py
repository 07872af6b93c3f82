"""A trained model file and the images it is measured on, as trials of a sensitivity study."""

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import nn
from torch.utils.data import Dataset, Subset

from classify.checkpoint import check_classes, load_classifier, read_card
from classify.evaluate import evaluate_classifier
from classify.image_data import ImageData
from classify.synthetic import SHAPES
from command.files import sha256_of
from command.folders import generated
from detect.annotations import read_annotations
from detect.config import AnyBoxes, GivenBoxes
from detect.data import CocoSet, check_coco, coco_subset
from detect.data import fingerprint as coco_fingerprint
from detect.detector_file import load_detector
from detect.evaluate import evaluate_detector
from detect.pruning import in_detector
from detect.synthetic import write_scenes
from detect.traced import PARTS, TracedDetector, detector_cost, example_images
from experiment.cutting import ModelData, check_data_kind
from prune.choose.recipe import Recipe
from prune.sensitivity import Evaluate, Trials

__all__ = ["DATA_FOLDER", "Subject", "subject_of"]

DATA_FOLDER = "data"
"""Where a study keeps generated data, in its folder."""

_HELD_BYTES = 2**30  # up to this size the images are decoded once, instead of once per trial


@dataclass(frozen=True)
class Subject:
    """The model and data of a study; all is checked, nothing written yet."""

    kind: str
    metric: str
    """Name of the score."""
    trials: Trials
    data: tuple[str, ...]
    """Fingerprints; generated data has none."""
    evaluator: Callable[[Path], tuple[Evaluate, int]]
    """Study's folder, where data is generated -> (evaluation, number of images it uses)."""


def subject_of(
    model: Path,
    data: ModelData,
    num_images: int | None,
    recipes: Sequence[Recipe],
    parts: Sequence[str],
    mmdet: Path | None = None,
) -> Subject:
    """Return the trials of a model file and how they are evaluated.

    Args:
        model: Of a dense classifier or detector.
        data: Its validation images are used.
        num_images: How many of them, evenly spread over the set; None for all.
        recipes: Those to try on every group alone; layers of a detector's backbone have the classifier's names.
        parts: Those of a detector that are cut.
        mmdet: mmdet's config, for a detector of mmdet's own parts.

    Raises:
        MissingFileError: If the model file or data is missing.
        RequestError: If model, data and options do not fit each other.
    """
    card = load_detector(model, mmdet)[1] if mmdet else read_card(model)
    card.check_dense(model)
    check_data_kind(model, card, data)
    if isinstance(data, ImageData):
        return _classifier(model, data, num_images, recipes)
    return _detector(model, mmdet, data, num_images, recipes, parts)


def _classifier(model: Path, data: ImageData, num_images: int | None, recipes: Sequence[Recipe]) -> Subject:
    classes = data.check()
    net, card = load_classifier(model)
    check_classes(model, card, classes)
    side = card.preprocessing.image_hw[0]
    trials = Trials(net, (torch.zeros(1, 3, side, side),), recipes)

    def evaluator(folder: Path) -> tuple[Evaluate, int]:
        val = data.placed(folder / DATA_FOLDER, side).images("val", side, crop_share=card.preprocessing.crop_share)
        images = _some_images(val, num_images, side)

        def evaluate(slim: nn.Module) -> float:
            with _workplace() as work:
                return evaluate_classifier(slim, images, work)["top1"]

        return evaluate, len(images)

    return Subject("classifier", "top1", trials, data.fingerprints("val"), evaluator)


def _some_images(dataset: Any, num_images: int | None, side: int) -> Any:
    places = _spread(len(dataset), num_images)
    images: Dataset[Any] = Subset(dataset, places)
    return [images[i] for i in range(len(places))] if len(places) * 3 * side**2 <= _HELD_BYTES else images


def _detector(
    model: Path,
    mmdet: Path | None,
    data: AnyBoxes,
    num_images: int | None,
    recipes: Sequence[Recipe],
    parts: Sequence[str],
) -> Subject:
    classes = check_coco(data.val) if isinstance(data, GivenBoxes) else SHAPES
    if isinstance(data, GivenBoxes):
        with tempfile.TemporaryDirectory() as unused:  # refused now rather than after the study began
            _some_scenes(data.val, num_images, Path(unused))
    detector, card = load_detector(model, mmdet)
    check_classes(model, card, classes)
    given = (sha256_of(mmdet),) if mmdet else ()
    cost = detector_cost(detector, card)
    traced = TracedDetector(detector)
    recipes = [in_detector(recipe, parts, traced) for recipe in recipes]
    trials = Trials(traced, example_images(), recipes, dense_cost=cost)

    def evaluator(folder: Path) -> tuple[Evaluate, int]:
        coco, num = _some_scenes(_scenes(data, folder, card.preprocessing.image_hw), num_images, folder)

        def evaluate(slim: nn.Module) -> float:
            with _workplace() as work:
                return evaluate_detector(_assembled(detector, slim), card, coco, work)["map"]

        return evaluate, num

    prints = (*((coco_fingerprint(data.val),) if isinstance(data, GivenBoxes) else ()), *given)
    return Subject("detector", "map", trials, prints, evaluator)


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for one evaluation; mmengine would keep the log in it open, hundreds of them in the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        logger = MMLogger.get_current_instance()
        for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
            logger.removeHandler(handler)  # otherwise it would open its file again for the next message
            handler.close()


def _assembled(detector: nn.Module, slim: Any) -> nn.Module:
    """Return the detector around the parts of its slim `TracedDetector`."""
    held = dict(detector.named_children())
    return copy.deepcopy(detector, {id(held[part]): getattr(slim, part) for part in PARTS if part in held})


def _scenes(data: AnyBoxes, folder: Path, size_hw: tuple[int, int]) -> CocoSet:
    if isinstance(data, GivenBoxes):
        return data.val
    made = generated(folder / DATA_FOLDER, lambda partial: write_scenes(partial, data.num_val, size_hw, data.seed + 1))
    return CocoSet(made / "instances.json", made / "images")


def _some_scenes(coco: CocoSet, num_images: int | None, folder: Path) -> tuple[CocoSet, int]:
    """Return the set of images to use, and their number; its annotations are written."""
    places = _spread(len(read_annotations(coco.annotations)["images"]), num_images)
    return coco_subset(coco, places, folder / "annotations.json", "num_images"), len(places)


def _spread(total: int, num: int | None) -> list[int]:
    """Return up to `num` indices, evenly spread: an image folder is sorted by class."""
    num = min(total, num or total)
    return [i * total // num for i in range(num)]
