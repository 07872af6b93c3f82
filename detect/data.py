"""COCO-format data: checked before work starts, read by mmdet while it runs."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps

__all__ = ["CocoSet", "check_coco", "fingerprint", "read_annotations", "write_crops"]

_TOLERANCE_PX = 1.0  # annotation tools round to pixels

_FIELDS = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
    "categories": {"id", "name"},
}
"""What mmdet and pycocotools read of each row; a missing field would stop them in the middle of the work."""


@dataclass(frozen=True)
class CocoSet:
    """One annotation file and the folder its file names are relative to."""

    annotations: Path
    images: Path


def read_annotations(path: Path) -> dict[str, Any]:
    """Return the annotation file's content.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not COCO detection format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a COCO annotation file")
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON; expected a COCO annotation file") from error
    for key, fields in _FIELDS.items():
        rows = data.get(key) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and fields <= row.keys() for row in rows):
            raise ValueError(f"{path}: not COCO format, {key!r} is not a list of {sorted(fields)}; expected COCO boxes")
    return data


def check_coco(coco: CocoSet) -> tuple[str, ...]:
    """Check the whole set without decoding pixels; return the class names in the order of their labels.

    Raises:
        FileNotFoundError: If the annotation file, the folder or an image is missing.
        ValueError: If the file is not COCO, an image does not decode or has another size, a box lies outside its
            image or is empty, a category is not declared, or there is no box at all.
    """
    data = read_annotations(coco.annotations)
    if not coco.images.is_dir():
        raise FileNotFoundError(f"{coco.images}: no such folder; expected the images of {coco.annotations}")
    _check_images(coco, data["images"])
    _check_boxes(coco, data)
    return tuple(category["name"] for category in data["categories"])


def fingerprint(coco: CocoSet) -> str:
    """Return a hash of the annotation file and of every image's name and size in bytes."""
    digest = hashlib.sha256(coco.annotations.read_bytes())
    for image in read_annotations(coco.annotations)["images"]:
        digest.update(f"{image['file_name']} {(coco.images / image['file_name']).stat().st_size}".encode())
    return digest.hexdigest()


def write_crops(coco: CocoSet, folder: Path, min_size: int = 12) -> int:
    """Cut every annotated object out into `folder/<class>/*.png`, a quarter wider than its box; return how many.

    An image folder of a detection set's own objects: what a backbone can be trained on where no classification set of
    the same kind of picture exists. Crowds and boxes smaller than `min_size` px are left out.
    """
    data = read_annotations(coco.annotations)
    names = {category["id"]: re.sub(r"[^\w -]", "_", category["name"]) for category in data["categories"]}
    files = {image["id"]: image["file_name"] for image in data["images"]}
    for name in names.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    num = 0
    for i, box in enumerate(data["annotations"]):
        x, y, w, h = box["bbox"]
        if box.get("iscrowd") or min(w, h) < min_size:
            continue
        side = 1.25 * max(w, h)
        left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
        with Image.open(coco.images / files[box["image_id"]]) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            crop = upright.crop((round(left), round(top), round(left + side), round(top + side)))
        crop.save(folder / names[box["category_id"]] / f"{i:07}.png", compress_level=1)
        num += 1
    return num


def _check_images(coco: CocoSet, images: list[dict[str, Any]]) -> None:
    missing = [image["file_name"] for image in images if not (coco.images / image["file_name"]).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{coco.images / missing[0]}: no such image, {len(missing)} of {len(images)} named by "
            f"{coco.annotations} are missing; expected all of them"
        )
    if not images:
        raise ValueError(f"{coco.annotations}: names no images; expected at least one")
    for row in images:
        path = coco.images / row["file_name"]
        try:
            with Image.open(path) as image:
                size = _upright_size(image)
        except OSError as error:
            raise ValueError(f"{path}: does not decode; expected an image") from error
        if size != (row["width"], row["height"]):
            stated = (row["width"], row["height"])
            raise ValueError(f"{path}: is {size} (w, h), {coco.annotations} says {stated}; expected the same size")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (w, h) as mmdet loads the image: turned as its EXIF orientation says; 5 to 8 are the quarter turns."""
    if "exif" not in image.info:  # where it is absent, asking a PNG for it would decode all pixels
        return image.size
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return image.size[::-1] if is_turned else image.size


def _check_boxes(coco: CocoSet, data: dict[str, Any]) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    for i, row in enumerate(data["annotations"]):
        subject = f"{coco.annotations}: annotation {row.get('id', i)}"
        if row["image_id"] not in sizes:
            raise ValueError(f"{subject}: image_id {row['image_id']} is not among the images; expected one of them")
        if row["category_id"] not in categories:
            raise ValueError(f"{subject}: category_id {row['category_id']} is not declared; expected a category's id")
        if not _is_box(row["bbox"]):
            raise ValueError(f"{subject}: not a box, got {row['bbox']}; expected four numbers x, y, width, height")
        x, y, w, h = row["bbox"]
        width, height = sizes[row["image_id"]]
        if w <= 0 or h <= 0:
            raise ValueError(f"{subject}: empty box, got {row['bbox']}; expected width and height above 0")
        outside = max(-x, -y, x + w - width, y + h - height)
        if not outside <= _TOLERANCE_PX:
            raise ValueError(f"{subject}: box outside its image, got {row['bbox']}; expected within {width} x {height}")
    if all(row["iscrowd"] for row in data["annotations"]):
        raise ValueError(f"{coco.annotations}: holds no boxes; expected at least one that is no crowd")


def _is_box(bbox: Any) -> bool:
    is_four = isinstance(bbox, list) and len(bbox) == 4
    return is_four and all(isinstance(side, int | float) and math.isfinite(side) for side in bbox)
