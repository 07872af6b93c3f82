"""PASCAL VOC's average precision at an IoU of 0.5; mmdet's code matches boxes and averages."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect.openmmlab import average_precision, bbox_overlaps, tpfp_default

__all__ = ["VocClass", "VocEvaluation", "voc_averages", "voc_evaluation"]

_IOU = 0.5


@dataclass(frozen=True)
class VocClass:
    """The detections of one class, highest score first, and its objects."""

    name: str
    images: NDArray[np.int64]
    """Place of each detection's image, (D,)."""
    is_true: NDArray[np.bool_]
    """(D,); neither true nor false where a detection is of a difficult object, which is not counted."""
    is_false: NDArray[np.bool_]
    positives: NDArray[np.int64]
    """Objects to be found per image, (I,): those that are not difficult."""

    def average_precision(self, mode: str) -> float | None:
        """Return it by `11points` or `area`; None without objects."""
        if not self.positives.sum():
            return None
        true_D, false_D = self.is_true.cumsum(), self.is_false.cumsum()
        precision_D = true_D / np.maximum(true_D + false_D, 1)
        return float(average_precision(true_D / self.positives.sum(), precision_D, mode))


@dataclass(frozen=True)
class VocEvaluation:
    """What was matched in a set."""

    classes: tuple[VocClass, ...]
    num_images: int

    def mean(self, mode: str) -> float:
        """Return the mean over the classes that have objects; 0 without any."""
        found = [one.average_precision(mode) for one in self.classes]
        return float(np.mean([ap for ap in found if ap is not None] or [0.0]))


def voc_averages(evaluation: VocEvaluation) -> dict[str, float]:
    """Return `map50`, VOC2007's mean over 11 recalls, `map`, the same, and `map50_area`, that of VOC since 2010."""
    eleven = evaluation.mean("11points")
    return {"map": eleven, "map50": eleven, "map50_area": evaluation.mean("area")}


def voc_evaluation(data: Mapping[str, Any], results: list[dict[str, Any]]) -> VocEvaluation:
    """Match detections with objects as VOC does: each with the object that it overlaps most, which counts once.

    Args:
        data: Images, annotations and categories as `detect.voc.voc_annotations` has them.
        results: COCO result rows.
    """
    return VocEvaluation(tuple(_classes(data, results)), len(data["images"]))


def _classes(data: Mapping[str, Any], results: list[dict[str, Any]]) -> Iterator[VocClass]:
    places = {image["id"]: place for place, image in enumerate(data["images"])}
    objects, detections = _by_class(data["annotations"]), _by_class(results)
    for category in data["categories"]:
        found, positives = [np.zeros((4, 0))], np.zeros(len(places), np.int64)
        truth, rows = objects[category["id"]], detections[category["id"]]
        for image_id in sorted({*truth, *rows}, key=places.__getitem__):
            positives[places[image_id]] = sum(not row["difficult"] for row in truth[image_id])
            ranked = sorted(rows[image_id], key=lambda row: -row["score"])
            scores = np.array([row["score"] for row in ranked], np.float64)
            where = np.full(len(scores), places[image_id])
            found.append(np.stack([where, scores, *_matched(_xyxy(ranked), truth[image_id])]))
        images, scores, true, false = np.concatenate(found, axis=1)
        order = np.argsort(-scores, kind="stable")
        yield VocClass(
            category["name"],
            images[order].astype(np.int64),
            true[order].astype(bool),
            false[order].astype(bool),
            positives,
        )


def _matched(boxes: NDArray[np.float64], truth: list[dict[str, Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return whether each detection of an image, highest score first, is true, and whether it is false.

    Of objects that are overlapped alike the first one counts, difficult or not, as in VOC's own code, and of detections
    with one score the first. mmdet's takes objects that are not difficult first, and such detections in any order: here
    it sees ranks as scores, and all objects as one kind.
    """
    objects, ranks = _xyxy(truth), -np.arange(len(boxes))
    true, false = tpfp_default(np.column_stack([boxes, ranks]), objects, objects[:0], _IOU)
    overlaps = np.column_stack([bbox_overlaps(boxes, objects), np.zeros(len(boxes))])  # the last is of no object
    difficult = np.array([*(row["difficult"] for row in truth), 0], bool)
    counts = ~(difficult[overlaps.argmax(axis=1)] & (overlaps.max(axis=1) >= _IOU))
    return true[0] * counts, false[0] * counts


def _by_class(rows: list[dict[str, Any]]) -> dict[Any, dict[Any, list[dict[str, Any]]]]:
    """Return rows by category, then by image."""
    found: dict[Any, dict[Any, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["category_id"]][row["image_id"]].append(row)
    return found


def _xyxy(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
