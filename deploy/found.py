"""What a detector found, in the forms that other tools take: COCO's result rows, a table, supervision's detections."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from command.errors import RequestError
from deploy.detector import Found

__all__ = ["arrays_of", "coco_results", "table_rows"]


def coco_results(
    found: Iterable[Sequence[Found]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Return COCO's result rows, for `json.dump` and pycocotools' `loadRes`.

    Args:
        found: Of each image, as `Detector` returns them; for a score, detect with `min_score=0`.
        image_ids: In the annotation file, of each image.
        category_ids: In the annotation file, of each class, in the order of `Detector.classes`.

    Raises:
        RequestError: If there are not as many ids as images, or too few categories.
    """
    found = list(found)
    _check_as_many("image_ids", image_ids, len(found))
    _check_as_many("category_ids", category_ids, 1 + max((t.label for things in found for t in things), default=-1))
    rows = []
    for image_id, things in zip(image_ids, found, strict=False):
        for thing in things:
            x0, y0, x1, y1 = thing.box_xyxy
            box = [x0, y0, x1 - x0, y1 - y0]
            category_id = category_ids[thing.label]
            rows.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": thing.score})
    return rows


def table_rows(found: Iterable[Sequence[Found]], images: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per object, for `pandas.DataFrame(rows)` or `csv.DictWriter`.

    Args:
        found: Of each image, as `Detector` returns them.
        images: Name of each image.

    Raises:
        RequestError: If there are not as many names as images.
    """
    found = list(found)
    _check_as_many("images", images, len(found))
    return [
        {
            "image": str(image),
            "name": thing.name,
            "label": thing.label,
            "score": thing.score,
            **dict(zip(("x0", "y0", "x1", "y1"), thing.box_xyxy, strict=True)),
        }
        for image, things in zip(images, found, strict=False)
        for thing in things
    ]


def arrays_of(found: Sequence[Found]) -> dict[str, Any]:
    """Return the objects of one image as arrays, for `supervision.Detections(**arrays_of(found))`."""
    return {
        "xyxy": np.array([thing.box_xyxy for thing in found], np.float32).reshape(-1, 4),
        "confidence": np.array([thing.score for thing in found], np.float32),
        "class_id": np.array([thing.label for thing in found], int),
        "data": {"class_name": np.array([thing.name for thing in found], str)},
    }


def _check_as_many(name: str, given: Sequence[Any], num: int) -> None:
    is_right = len(given) >= num if name == "category_ids" else len(given) == num
    if not is_right:
        raise RequestError(f"{name}: wrong number, got {len(given)}; expected {num}")
