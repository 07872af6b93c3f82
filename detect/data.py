"""Data in COCO format, or VOC's: checked before work starts, read by mmdet while it runs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command.errors import MissingFileError, RequestError
from command.files import shown, write_json
from command.notes import note
from deploy.images import image_contents
from detect.annotations import Annotations, annotations_in, annotations_sha256, read_annotations

__all__ = [
    "CocoSet",
    "GivenSet",
    "check_coco",
    "coco_subset",
    "fingerprint",
]

_TOLERANCE_PX = 1.0  # annotation tools round to pixels


@dataclass(frozen=True)
class CocoSet:
    """One annotation file, or list of VOC's images, and the folder its file names are relative to."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class GivenSet(CocoSet):
    """What a data loader of a user's config of mmdet reads; `annotations` and `images` are those of its first set."""

    loader: Mapping[str, Any] = field(compare=False)
    """mmengine's data loader dictionary; its sets read the annotations that were checked."""
    sets: tuple[CocoSet, ...]
    """All its sets, each once."""
    classes: tuple[str, ...]


def coco_subset(coco: CocoSet, indices: Iterable[int], annotations: Path, subject: str) -> CocoSet:
    """Return the set of the images at some indices of the file; writes its annotation file.

    Args:
        coco: The whole set.
        indices: Indices of images; those past the end are left out.
        annotations: File to write.
        subject: Begins the error message.

    Raises:
        RequestError: If these images have no boxes.
    """
    data = read_annotations(coco.annotations)
    images = [data["images"][index] for index in indices if index < len(data["images"])]
    ids = {image["id"] for image in images}
    boxes = [row for row in data["annotations"] if row["image_id"] in ids]
    if all(row["iscrowd"] for row in boxes):
        raise RequestError(f"{subject}: no boxes in these images, got {len(images)} images; expected more images")
    write_json(annotations, {**data, "images": images, "annotations": boxes})
    return CocoSet(annotations, coco.images)


def check_coco(coco: CocoSet, strict: bool = False) -> tuple[str, ...]:
    """Check the whole set; return the class names in the order of their labels.

    All images are decoded, once: what is in them is remembered while their size and time stay the same. A line on
    standard error says what was repaired, and what is not learnt.

    Args:
        coco: The set.
        strict: Refuse what would be repaired, and boxes that cannot be learnt.

    Raises:
        MissingFileError: If the annotation file, the folder or an image is missing.
        RequestError: If the file is not COCO, a file is not an image or has another size, a box is outside its image, a
            category is not declared, or there are no boxes.
    """
    found = annotations_in(coco.annotations)
    if not coco.images.is_dir():
        raise MissingFileError(f"{coco.images}: no such folder; expected the images of {coco.annotations}")
    _check_images(coco, found.data["images"])
    _check_boxes(coco, found.data)
    _tell(coco, found, strict)
    return tuple(category["name"] for category in found.data["categories"])


def fingerprint(coco: CocoSet) -> str:
    """Return a hash of the annotation file and of every image's name and content.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If a file is not an image that decodes.
    """
    names = [image["file_name"] for image in read_annotations(coco.annotations)["images"]]
    images = image_contents([coco.images / name for name in names])
    content = [(name, image.sha256) for name, image in zip(names, images, strict=True)]
    return hashlib.sha256(json.dumps([annotations_sha256(coco.annotations), content]).encode()).hexdigest()


def _check_images(coco: CocoSet, images: list[dict[str, Any]]) -> None:
    missing = [image["file_name"] for image in images if not (coco.images / image["file_name"]).exists()]
    if missing:
        remedy = ", with / in place of \\ in their names" if "\\" in missing[0] else ""
        raise MissingFileError(
            f"{coco.images / missing[0]}: no such image, {len(missing)} of the {len(images)} images in "
            f"{coco.annotations} are missing; expected all of them{remedy}"
        )
    if not images:
        raise RequestError(f"{coco.annotations}: has no images, got an empty list; expected at least one")
    paths = [coco.images / row["file_name"] for row in images]
    for path, row, image in zip(paths, images, image_contents(paths), strict=True):
        stated = (row["width"], row["height"])
        if image.size != stated:
            size = image.size
            raise RequestError(f"{path}: wrong size (w, h), got {size}; expected {stated}, as in {coco.annotations}")


def _check_boxes(coco: CocoSet, data: dict[str, Any]) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    for row in data["annotations"]:
        subject = f"{coco.annotations}: annotation {row['id']}"
        if row["image_id"] not in sizes:
            raise RequestError(f"{subject}: unknown image_id, got {row['image_id']}; expected the id of an image")
        if row["category_id"] not in categories:
            raise RequestError(
                f"{subject}: unknown category_id, got {row['category_id']}; expected the id of a category"
            )
        x, y, w, h = row["bbox"]
        width, height = sizes[row["image_id"]]
        if w < 0 or h < 0:
            raise RequestError(f"{subject}: not a box, got {row['bbox']}; expected width and height of at least 0")
        outside = max(-x, -y, x + w - width, y + h - height)
        if not outside <= _TOLERANCE_PX:
            raise RequestError(
                f"{subject}: box outside its image, got {row['bbox']}; expected within {width} x {height}"
            )


def _tell(coco: CocoSet, found: Annotations, strict: bool) -> None:
    """Say what was repaired and what mmdet leaves out; refuse it where `strict`, or where nothing is left."""
    rows, unlearnt = found.data["annotations"], found.unlearnt()
    faults = list(found.repairs)
    if unlearnt:
        first = f"annotation {unlearnt[0]['id']} with {unlearnt[0]['bbox']}"
        faults.append(f"{_counted(unlearnt, 'box')} under 1 px wide or high cannot be learnt, first {first}")
    if strict and faults:
        raise RequestError(f"{coco.annotations}: {faults[0]}; expected a set without faults, or data.strict=false")
    crowds = [row for row in rows if row["iscrowd"]]
    if len(crowds) + sum(not row["iscrowd"] for row in unlearnt) == len(rows):
        got = f"{len(crowds)} crowds and {len(rows) - len(crowds)} boxes under 1 px"
        raise RequestError(f"{coco.annotations}: has no boxes, got {got}; expected at least one box")
    with_boxes = {row["image_id"] for row in rows}
    empty = [image for image in found.data["images"] if image["id"] not in with_boxes]
    facts = [f"{_counted(crowds, 'crowd')}: neither learnt nor missed"] if crowds else []
    facts += [f"{_counted(empty, 'image')} without boxes: not trained on"] if empty else []
    used = {row["category_id"] for row in rows}
    unused = [category["name"] for category in found.data["categories"] if category["id"] not in used]
    facts += [f"no boxes of {_named(unused)}"] if unused else []
    if faults or facts:
        note(f"{coco.annotations}: {'; '.join(faults + facts)}")


def _named(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} other categories" if len(names) > 3 else "")


def _counted(rows: list[dict[str, Any]], what: str) -> str:
    return f"{len(rows):,} {what}{'' if len(rows) == 1 else 'es' if what == 'box' else 's'}"
