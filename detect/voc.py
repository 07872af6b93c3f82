"""PASCAL VOC's folders, read into the form of COCO annotation files."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from command.errors import MissingFileError, RequestError
from command.files import sha256_of, shown

__all__ = ["VOC_METRIC", "is_voc", "voc_annotations", "voc_images", "voc_sha256"]

VOC_METRIC = "voc07"
"""Name of the metric in annotations and rows."""
_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_MAX_BYTES = 1 << 20
"""Of one XML file; those of VOC have some thousand."""
_MAX_NAME = 200
"""Bytes of an image's name, of which file systems allow 255, and of a class's."""
_MAX_SIDE = 65_535  # of a JPEG file
_MAX_SHOWN = 8
_TOLERANCE_PX = 1.0  # as for COCO


class _FaultError(ValueError):
    """What is wrong with a file or an object, without its name."""


@dataclass(frozen=True)
class _Read:
    """What one XML file says."""

    size_wh: tuple[int, int]
    objects: list[dict[str, Any]]


def is_voc(annotations: Path) -> bool:
    """Return whether annotations are a list of VOC's images rather than a COCO file."""
    return annotations.suffix == ".txt"


def voc_images(image_set: Path) -> Path:
    """Return the folder of the images that a list names: JPEGImages, three folders up."""
    return _devkit(image_set) / "JPEGImages"


def voc_annotations(image_set: Path) -> dict[str, Any]:
    """Return what the files in Annotations say of a list's images, as COCO's images, annotations and categories.

    A box holds its pixels whole: from xmin - 1 to xmax in x, so that overlaps are those of VOC's own evaluation, which
    adds one to widths. Objects that are `difficult` are learnt like all others, and say so. The classes are VOC's
    twenty; where there are other names, all that occur, sorted, as VOC's are.

    Args:
        image_set: ImageSets/Main/trainval.txt and its like: the name of an image, without its suffix, in each line.

    Raises:
        MissingFileError: If there is no such list.
        RequestError: If it is no list, or files are missing or invalid; the message names these with their objects.
    """
    names = _names(image_set)
    read = _read_all(image_set, names)
    found = {row["name"] for one in read for row in one.objects}
    classes = _CLASSES if found <= {*_CLASSES} else tuple(sorted(found))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, one) in enumerate(zip(names, read, strict=True), start=1):
        width, height = one.size_wh
        images.append({"id": number, "file_name": f"{name}.jpg", "width": width, "height": height})
        for row in one.objects:
            category, identity = classes.index(row["name"]) + 1, len(annotations) + 1
            boxed = {key: row[key] for key in ("bbox", "area", "difficult")}
            annotations.append({"id": identity, "image_id": number, "category_id": category, "iscrowd": 0, **boxed})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories, "metric": VOC_METRIC}


def voc_sha256(image_set: Path) -> str:
    """Return a hash of a list and of the files in Annotations that it names."""
    files = [_xml(image_set, name) for name in _names(image_set)]
    return hashlib.sha256(json.dumps([sha256_of(image_set), *map(sha256_of, files)]).encode()).hexdigest()


def _devkit(image_set: Path) -> Path:
    return image_set.absolute().parent.parent.parent


def _xml(image_set: Path, name: str) -> Path:
    return _devkit(image_set) / "Annotations" / f"{name}.xml"


def _names(image_set: Path) -> list[str]:
    if not image_set.is_file():
        raise MissingFileError(f"{image_set}: no such file; expected a list of VOC's images, one name in a line")
    try:
        names = image_set.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"{image_set}: not UTF-8; expected a list of VOC's images, one name in a line") from error
    names = [name.strip() for name in names if name.strip()]
    for name in names:
        if Path(name).name != name or name[0] == "." or {*name} & {*"\\ "} or not _is_short_line(name):
            raise RequestError(f"{image_set}: not the name of an image, got {shown(name)}; expected one as 000005")
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{image_set}: names an image twice, got {shown(twice)}; expected each once")
    return names


def _read_all(image_set: Path, names: list[str]) -> list[_Read]:
    """Return what all files say; raise RequestError that lists the faults of all of them."""
    read, faults = [], []
    for name in names:
        try:
            read.append(_read(_xml(image_set, name), found := list[str]()))
        except _FaultError as fault:
            found = [str(fault)]
        faults += [f"{name}.xml: {fault}" for fault in found]
    if faults:
        more = f"; and {len(faults) - _MAX_SHOWN} more" if len(faults) > _MAX_SHOWN else ""
        num = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise RequestError(
            f"{_xml(image_set, 'x').parent}: {num} in files that {image_set.name} names, got "
            f"{'; '.join(faults[:_MAX_SHOWN])}{more}; expected VOC's annotations of {len(names):,} images"
        )
    return read


def _read(path: Path, faults: list[str]) -> _Read:
    """Return what a file says; the faults of its objects are added to `faults`."""
    root = _root(path)
    size = root.find("size")
    if size is None:
        raise _FaultError("size is missing")
    size_wh = (_number(size, "width"), _number(size, "height"))
    if any(not 1 <= side <= _MAX_SIDE or side % 1 for side in size_wh):
        raise _FaultError(f"size (w, h) is {size_wh}, not whole numbers of pixels up to {_MAX_SIDE:,}")
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = _text(element, "name")
        try:
            objects.append(_object(element, name, size_wh))
        except _FaultError as fault:
            faults.append(f"object {number} ({shown(name) if name else 'no name'}): {fault}")
    return _Read((int(size_wh[0]), int(size_wh[1])), objects)


def _root(path: Path) -> Element:
    """Return a file's root element; no entity of its own is expanded, as a file with a DOCTYPE is refused."""
    if not path.is_file():
        raise _FaultError("is missing")
    if path.stat().st_size > _MAX_BYTES:
        raise _FaultError(f"has {path.stat().st_size:,} bytes, more than {_MAX_BYTES:,}")
    try:
        text = path.read_text("utf-8-sig")
        if "<!DOCTYPE" in text:  # of the text that is parsed: nothing hides it in another encoding
            raise _FaultError("has a DOCTYPE, which is not read")
        return ElementTree.fromstring(text)
    except UnicodeDecodeError as error:
        raise _FaultError("is not UTF-8") from error
    except ElementTree.ParseError as error:
        raise _FaultError(f"is not XML, {error}") from error


def _object(element: Element, name: str, size_wh: tuple[float, float]) -> dict[str, Any]:
    if not name:
        raise _FaultError("name is missing")
    if not _is_short_line(name):
        raise _FaultError(f"name is not one line of at most {_MAX_NAME} bytes")
    box = element.find("bndbox")
    if box is None:
        raise _FaultError("bndbox is missing")
    difficult = _text(element, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise _FaultError(f"difficult is {shown(difficult)}, not 0 or 1")
    left, top, right, bottom = (_number(box, edge) for edge in _EDGES)
    if right < left or bottom < top:
        raise _FaultError(f"bndbox {_written(left, top, right, bottom)} ends before it begins")
    width, height = size_wh
    if max(1 - left, 1 - top, right - width, bottom - height) > _TOLERANCE_PX:
        raise _FaultError(f"bndbox {_written(left, top, right, bottom)} is outside 1 to {width:g} x 1 to {height:g}")
    x, y = max(left - 1, 0.0), max(top - 1, 0.0)
    w, h = min(right, width) - x, min(bottom, height) - y
    return {"name": name, "bbox": [x, y, w, h], "area": w * h, "difficult": int(difficult)}


def _is_short_line(name: str) -> bool:
    return name.isprintable() and len(name.encode()) <= _MAX_NAME


def _written(*edges: float) -> str:
    return " ".join(f"{edge:g}" for edge in edges)


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _number(element: Element, tag: str) -> float:
    text = _text(element, tag)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _FaultError(f"{tag} is {shown(text) if text else 'missing'}, not a number")
    return number
