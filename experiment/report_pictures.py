"""Photographs with boxes, as data for the page: one compact image, and the boxes to lay over it as SVG."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from command.errors import RequestError
from deploy.images import image_from_file

__all__ = ["Box", "Panel", "Picture", "legend", "prepare"]

# Okabe and Ito's colours, without black, distinct for colour-blind readers.
CLASS_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
LEAST_SCORE = 0.3
LONGEST_SIDE = 640


@dataclass(frozen=True)
class Box:
    """A rectangle in the picture's pixels; `title` has class and score, `caption` as much as there is room for."""

    left: float
    top: float
    width: float
    height: float
    name: str
    title: str
    caption: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One view of the picture: the truth, or what one detector found."""

    title: str
    boxes: list[Box]


@dataclass(frozen=True)
class Picture:
    """One photograph and its panels; `uri` is empty where the file is gone."""

    uri: str
    height: int
    width: int
    panels: list[Panel]


def prepare(picture: dict[str, Any], classes: list[str], order: list[str], folder: Path) -> Picture:
    """Return a picture of the results with its panels: the ground truth, then the detectors in the given order.

    Args:
        picture: `file`, `size_hw`, `truth` and `detections` as in `results.json`; boxes are in pixels of `size_hw`.
        classes: Class names by label.
        order: Names of the rows to show.
        folder: What a relative `file` is relative to.

    Raises:
        RequestError: If the file is there, but is not an image of that size.
    """
    height, width = picture["size_hw"]
    found = picture["detections"]
    views = [
        ("ground truth", picture["truth"]),
        *((name, found[name]) for name in dict.fromkeys(order) if name in found),
    ]
    panels = [Panel(title, [_box(thing, classes) for thing in things if _is_drawn(thing)]) for title, things in views]
    return Picture(_image_uri(folder / picture["file"], (height, width)), height, width, panels)


def legend(pictures: list[Picture]) -> dict[str, str]:
    """Return the colour of every class that occurs, by name."""
    boxes = (box for picture in pictures for panel in picture.panels for box in panel.boxes)
    return dict(sorted({box.name: box.colour for box in boxes}.items()))


def _is_drawn(thing: dict[str, Any]) -> bool:
    return bool(thing.get("score", 1.0) >= LEAST_SCORE)


def _box(thing: dict[str, Any], classes: list[str]) -> Box:
    left, top, right, bottom = thing["box_xyxy"]
    name = classes[thing["label"]]
    score = f"{thing['score']:.2f}" if "score" in thing else ""
    title = f"{name} {score}".rstrip()
    # A colour that several classes share cannot replace the name.
    caption = score if score and len(classes) <= len(CLASS_COLOURS) else title
    colour = CLASS_COLOURS[thing["label"] % len(CLASS_COLOURS)]
    return Box(left, top, right - left, bottom - top, name, title, caption, colour)


def _image_uri(path: Path, size_hw: tuple[int, int]) -> str:
    """Return the image made small, so that nothing of the file but its pixels is in the page."""
    if not path.exists():
        return ""
    if not path.is_file():
        raise RequestError(f"{path}: not a file; expected an image")
    small = Image.fromarray(image_from_file(path))  # upright, as boxes and `size_hw` are
    if (small.height, small.width) != size_hw:
        raise RequestError(
            f"{path}: another image, got {small.height} x {small.width}; expected {size_hw[0]} x {size_hw[1]}"
        )
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    data = io.BytesIO()
    small.save(data, "webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
