"""COCO annotation files: read, checked, brought into one form, and given to mmdet and pycocotools.

VOC's lists of images are read into the same form, by `detect.voc`.
"""

import math
import reprlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pycocotools.coco import COCO
from pydantic import FailFast, Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict  # pydantic needs this one below Python 3.12

from command.errors import MissingFileError, RequestError
from command.files import sha256_of
from detect.voc import is_voc, voc_annotations, voc_sha256

__all__ = ["Annotations", "annotations_in", "annotations_sha256", "as_coco", "numbers", "read_annotations"]

_Text = Annotated[str, Field(min_length=1)]
_Box = Annotated[list[FiniteFloat | int], Field(min_length=4, max_length=4)]
_Coco = TypeVar("_Coco", bound=COCO)


class _Image(TypedDict):
    id: int | str
    file_name: NotRequired[_Text]
    coco_url: NotRequired[str | None]
    width: int
    height: int


class _Annotation(TypedDict):
    id: int | str
    image_id: int | str
    category_id: int | str
    bbox: _Box
    area: NotRequired[FiniteFloat | int | None]
    iscrowd: NotRequired[Literal[0, 1] | bool | None]
    ignore: NotRequired[Literal[0, 1] | bool | None]
    difficult: NotRequired[Literal[0, 1]]
    attributes: NotRequired[Any]


class _Category(TypedDict):
    id: int | str
    name: _Text


class _CocoFile(TypedDict):
    """The fields that are used; an error in them would stop the work halfway."""

    images: Annotated[list[_Image], FailFast()]
    annotations: Annotated[list[_Annotation], FailFast()]
    categories: Annotated[list[_Category], FailFast()]
    metric: NotRequired[Literal["voc07"]]


_KINDS = ("float", "int", "str", "bool", "literal[0,1]")
"""Members of unions, which pydantic names among the fields."""
_COCO_FILE: TypeAdapter[Any] = TypeAdapter(_CocoFile)
_EXPECTED = "expected unique ids, names as text, and boxes as four numbers x, y, width, height"


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says."""

    data: dict[str, Any]
    """Images, annotations and categories; every annotation has an area above 0 unless its box is empty, and `iscrowd`;
    every category has a name of its own. Of VOC there is `metric` too, and annotations say `difficult`."""
    repairs: tuple[str, ...]
    """What was changed to reach that, in words."""

    def unlearnt(self) -> list[dict[str, Any]]:
        """Return the annotations from which mmdet learns nothing: boxes under 1 px wide or high, or outside."""
        sizes = {image["id"]: (image["width"], image["height"]) for image in self.data["images"]}
        return [row for row in self.data["annotations"] if _is_unlearnt(row["bbox"], *sizes[row["image_id"]])]


def annotations_in(path: Path) -> Annotations:
    """Return what an annotation file says: one of COCO, or a list of VOC's images, whose name ends with `.txt`.

    Raises:
        MissingFileError: If there is none.
        RequestError: If it is not COCO detection format: a field is missing or has a wrong type, or an id is repeated;
            or as `voc_annotations`.
    """
    if is_voc(path):
        return Annotations(voc_annotations(path), ())
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a COCO annotation file")
    try:
        data: dict[str, Any] = _COCO_FILE.validate_json(path.read_bytes().removeprefix(BOM_UTF8), strict=True)
    except ValidationError as error:
        raise RequestError(f"{path}: {_first_fault(error)}") from error
    for name, rows in ((name, data[name]) for name in ("images", "annotations", "categories")):
        shared = [number for number, count in Counter(str(row["id"]) for row in rows).items() if count > 1]
        if shared:
            raise RequestError(f"{path}: not COCO format, {name} share an id, got {shared[0]} twice; {_EXPECTED}")
    rows, images, categories = (data[name] for name in ("annotations", "images", "categories"))
    repairs = (*_number_texts(data), *_names_from_urls(path, images), *_unrotated(rows, images))
    return Annotations(data, (*repairs, *_complete_areas(rows), *_crowds(rows), *_tell_apart(categories)))


def read_annotations(path: Path) -> dict[str, Any]:
    """Return `annotations_in` without what was repaired."""
    return annotations_in(path).data


def annotations_sha256(path: Path) -> str:
    """Return the hash of an annotation file, of VOC with the files of all images."""
    return voc_sha256(path) if is_voc(path) else sha256_of(path)


def numbers(rows: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Return a small number for each id, from 1 in their order: some ids are hashes too long for numpy."""
    return {number: place for place, number in enumerate(sorted(row["id"] for row in rows), start=1)}


def as_coco(kind: type[_Coco], path: str | Path) -> _Coco:
    """Return the file as pycocotools holds it, its ids replaced by `numbers`: COCOeval takes an id of 0 for none."""
    data = read_annotations(Path(path))
    images, categories = numbers(data["images"]), numbers(data["categories"])
    coco = kind()
    coco.dataset = {
        "images": [{**row, "id": images[row["id"]]} for row in data["images"]],
        "categories": [{**row, "id": categories[row["id"]]} for row in data["categories"]],
        "annotations": [
            {**row, "id": i, "image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]}
            for i, row in enumerate(data["annotations"], start=1)
        ],
    }
    coco.createIndex()
    return coco


def _number_texts(data: dict[str, Any]) -> list[str]:
    """Give rows whose ids are texts numbers instead, and what refers to them, in place."""
    repairs = []
    for name, reference in (("images", "image_id"), ("annotations", "id"), ("categories", "category_id")):
        if not any(isinstance(number, str) for number in _both(data, name, reference)):
            continue
        known = {str(row["id"]): number for number, row in enumerate(data[name], start=1)}
        for row in data["annotations"]:
            row[reference] = known.get(str(row[reference]), row[reference])
        for row in data[name] if reference != "id" else ():
            row["id"] = known[str(row["id"])]
        repairs.append(f"ids of {name} are texts: they are numbered in their order")
    return repairs


def _both(data: Mapping[str, Any], name: str, reference: str) -> Iterator[int | str]:
    yield from (row["id"] for row in data[name])
    yield from (row[reference] for row in data["annotations"])


def _names_from_urls(path: Path, images: list[dict[str, Any]]) -> list[str]:
    """Give images without a file name the end of their address, as LVIS has it for COCO's images.

    Raises:
        RequestError: If one has neither.
    """
    nameless = [image for image in images if "file_name" not in image]
    for image in nameless:
        image["file_name"] = "/".join((image.get("coco_url") or "").split("/")[-2:])
        if not image["file_name"]:
            raise RequestError(f"{path}: not COCO format, image {image['id']} has no file_name; {_EXPECTED}")
    return [f"{len(nameless)} images have no file name: that in coco_url is taken"] if nameless else []


def _unrotated(rows: list[dict[str, Any]], images: list[dict[str, Any]]) -> list[str]:
    """Replace boxes that CVAT has rotated about their centres by those around them; its `bbox` is not rotated."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    rotated = [row for row in rows if _degrees(row) and row["image_id"] in sizes]
    for row in rotated:
        x, y, w, h = row["bbox"]
        turn = math.radians(_degrees(row))
        across, up = abs(math.cos(turn)), abs(math.sin(turn))
        width, height = w * across + h * up, w * up + h * across
        left, top = x + (w - width) / 2, y + (h - height) / 2
        right, bottom = map(min, (left + width, top + height), sizes[row["image_id"]])
        row["bbox"] = [max(left, 0), max(top, 0), right - max(left, 0), bottom - max(top, 0)]
    return (
        [f"{len(rotated)} boxes are rotated, first {rotated[0]['id']}: those around them are taken"] if rotated else []
    )


def _degrees(row: Mapping[str, Any]) -> float:
    attributes = row.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    return rotation % 360 if isinstance(rotation, int | float) and math.isfinite(rotation) else 0.0


def _complete_areas(rows: list[dict[str, Any]]) -> list[str]:
    """Give every annotation an area; it counts for the bands of sizes in evaluation alone."""
    without = [row for row in rows if not (row.get("area") or 0) > 0]
    for row in without:
        row["area"] = max(row["bbox"][2], 0) * max(row["bbox"][3], 0)
    found = [row["id"] for row in without if row["area"]]
    return [f"{len(found)} annotations have no area, first {found[0]}: their boxes' is taken"] if found else []


def _crowds(rows: list[dict[str, Any]]) -> list[str]:
    """Take what is to be ignored for crowds: neither learnt, nor missed where it is not found."""
    ignored = [row["id"] for row in rows if row.get("ignore")]
    for row in rows:
        row["iscrowd"] = int(row.pop("ignore", 0) or row.get("iscrowd") or 0)
    return (
        [f"{len(ignored)} annotations say `ignore`, first {ignored[0]}: they are taken for crowds"] if ignored else []
    )


def _tell_apart(rows: list[dict[str, Any]]) -> list[str]:
    """Give categories of one name their id in it."""
    counts = Counter(row["name"] for row in rows)
    shared = [row for row in rows if counts[row["name"]] > 1]
    for row in shared:
        row["name"] += f" {row['id']}"
        while counts[row["name"]]:
            row["name"] += f" {row['id']}"
        counts[row["name"]] += 1
    return [f"categories share a name: they are called {', '.join(row['name'] for row in shared)}"] if shared else []


def _is_unlearnt(box: list[float], width: int, height: int) -> bool:
    x, y, w, h = box
    return w < 1 or h < 1 or min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    if fault["type"] == "json_invalid":
        return f"not JSON, got {reprlib.repr(fault['input'])}; expected a COCO annotation file"
    place = [part for part in fault["loc"] if part not in _KINDS]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    what = "is missing" if fault["type"] == "missing" else fault["msg"].removeprefix("Input ")
    return f"not COCO format, {where[1:] or 'the file'} {what}, got {reprlib.repr(fault['input'])}; {_EXPECTED}"
