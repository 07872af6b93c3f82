"""The objects of a COCO set cut out, as an image folder: for pictures that no classification set resembles."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from command.errors import RequestError, WorkError
from deploy.images import image_from_file
from detect.annotations import read_annotations
from detect.data import CocoSet

__all__ = ["check_crops", "crop_classes", "num_crops", "write_crops"]

_MAX_NAME = 60  # of a folder; file systems allow 255 bytes
_MIN_CROP_PX = 12  # smaller objects are too small to learn from
_BACKGROUND = "background"
_NUM_TRIES = 30
"""Places at which room for a square of background is looked for."""

_Square = tuple[float, float, float]
"""Left, top and side, in pixels."""


def check_crops(coco: CocoSet) -> None:
    """Raise RequestError if no object is large enough, or there is one class and no background beside it."""
    data = read_annotations(coco.annotations)
    if not any(_objects(data)):
        raise RequestError(f"{coco.annotations}: no object is large enough to be cut out; give an image folder")
    if len(data["categories"]) == 1 and not any(_backgrounds(data)):
        raise RequestError(
            f"{coco.annotations}: one class alone teaches nothing, and its boxes leave no room for squares of "
            f"background as a second; give an image folder"
        )


def num_crops(coco: CocoSet) -> int:
    """Return the number of images that `write_crops` would write."""
    return sum(1 for _ in _squares(read_annotations(coco.annotations)))


def write_crops(coco: CocoSet, folder: Path) -> int:
    """Cut every annotated object out, into `folder/<class>/*.png`, a quarter wider than its box; return how many.

    Crowds and boxes smaller than 12 px are left out; the folder of a class may be empty. Of a single class nothing
    could be learnt: squares without objects are a second one, as large as the objects and, with room, as many.
    """
    data = read_annotations(coco.annotations)
    names = crop_classes(data["categories"])
    files = {image["id"]: image["file_name"] for image in data["images"]}
    for name in names.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    num = 0
    for i, image_id, category_id, (left, top, side) in _squares(data):
        image = _as_detected(coco.images / files[image_id])
        crop = image.crop((round(left), round(top), round(left + side), round(top + side)))
        crop.save(folder / names[category_id] / f"{i:07}.png", compress_level=1)
        num += 1
    return num


def crop_classes(categories: Iterable[Mapping[str, Any]]) -> dict[int | None, str]:
    """Return the folder of the crops of each category by its id, no two in one folder; None is the background's."""
    folders: dict[int | None, str] = {}
    for row in categories:
        name = re.sub(r"[^\w -]", "_", row["name"])[:_MAX_NAME]
        while name in folders.values():
            name += f" {row['id']}"
        folders[row["id"]] = name
    if len(folders) == 1:
        folders[None] = f"{_BACKGROUND} " * (_BACKGROUND in folders.values()) + _BACKGROUND
    return folders


def _squares(data: dict[str, Any]) -> Iterator[tuple[int, int, int | None, _Square]]:
    """Yield every square: the index of its annotation in the file, its image, its category and its place."""
    for i, row in _objects(data):
        x, y, w, h = row["bbox"]
        side = 1.25 * max(w, h)
        yield i, row["image_id"], row["category_id"], (x + w / 2 - side / 2, y + h / 2 - side / 2, side)
    if len(data["categories"]) == 1:
        yield from ((i, image_id, None, square) for i, image_id, square in _backgrounds(data))


def _objects(data: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the annotations of single objects that are large enough, with their indices in the file."""
    for i, row in enumerate(data["annotations"]):
        if not row["iscrowd"] and min(row["bbox"][2:]) >= _MIN_CROP_PX:
            yield i, row


def _backgrounds(data: dict[str, Any]) -> Iterator[tuple[int, int, _Square]]:
    """Yield a square without objects for every object, the same at every call: in its image, else in an empty one.

    None where there is no room.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    boxes = defaultdict(list)
    for row in data["annotations"]:
        boxes[row["image_id"]].append(row["bbox"])
    empty = [image_id for image_id in sizes if image_id not in boxes]
    for i, row in _objects(data):
        for image_id in (row["image_id"], *([empty[i % len(empty)]] if empty else [])):
            if square := _free_square(1.25 * max(row["bbox"][2:]), sizes[image_id], boxes.get(image_id, []), seed=i):
                yield i, image_id, square
                break


def _free_square(side: float, size_wh: tuple[int, int], boxes: list[list[float]], seed: int) -> _Square | None:
    """Return a square, as large as there is room for in the image, that meets no box; None if none is found."""
    width, height = size_wh
    side = min(side, width, height)
    places = np.random.default_rng(seed).uniform((0, 0), (width - side, height - side), (_NUM_TRIES, 2)).tolist()
    free = ((left, top, side) for left, top in places)
    return next((square for square in free if not any(_overlap(square, box) for box in boxes)), None)


def _overlap(square: _Square, box: list[float]) -> bool:
    (left, top, side), (x, y, w, h) = square, box
    return x < left + side and left < x + w and y < top + side and top < y + h


def _as_detected(path: Path) -> Image.Image:
    """Return an image as detectors see it, to which its boxes belong."""
    try:
        return Image.fromarray(image_from_file(path))
    except RequestError as error:  # it decoded before the work
        raise WorkError(f"{error}; replace or delete it") from error
