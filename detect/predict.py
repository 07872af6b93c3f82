"""Boxes found in single images by mmdet's own prediction, and pictures that show them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmdet.apis import inference_detector
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import nn

from classify.checkpoint import ModelCard
from detect.model import mmdet_config

__all__ = ["Found", "draw", "image_files", "predict"]

_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Found:
    """One object, in pixels of its image."""

    name: str
    """Of its class."""
    score: float
    box_xyxy: tuple[float, ...]


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the given images and those directly in the given folders, checked without decoding pixels.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no image, one does not decode, or two have the same name, as their pictures would.
    """
    files: dict[str, Path] = {}
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path}: holds no images; expected files ending in {', '.join(_ENDINGS)}")
        for file in inside:
            _check_decodes(file)
            if file.name in files:
                raise ValueError(f"{file}: same name as {files[file.name]}; expected each name once")
            files[file.name] = file
    return list(files.values())


def predict(
    detector: nn.Module, card: ModelCard, files: Iterable[Path], min_score: float
) -> Iterator[tuple[Image.Image, list[Found]]]:
    """Yield each image and what mmdet's prediction finds in it, highest score first."""
    detector.cfg = mmdet_config(card)  # where mmdet looks for the preprocessing
    for file in files:
        image_HW3 = mmcv.imread(str(file))
        if image_HW3 is None:
            raise ValueError(f"{file}: does not decode; expected an image")
        with DefaultScope.overwrite_default_scope("mmdet"):
            instances = inference_detector(detector, image_HW3).pred_instances.numpy()
        yield Image.fromarray(image_HW3[..., ::-1]), _found(instances, card.classes, min_score)


def draw(image: Image.Image, found: Iterable[Found]) -> Image.Image:
    """Return a copy of the image with boxes, class names and scores, the best on top."""
    picture = image.copy()
    pen, width = ImageDraw.Draw(picture), max(1, min(image.size) // 200)
    font = ImageFont.load_default(max(10, min(image.size) // 40))
    for thing in reversed(list(found)):
        colour = _colour(thing.name)
        left, top = thing.box_xyxy[:2]
        pen.rectangle(thing.box_xyxy, outline=colour, width=width)
        label = f"{thing.name} {thing.score:.2f}"
        pen.rectangle(pen.textbbox((left, top), label, font), fill=colour)
        pen.text((left, top), label, "white", font)
    return picture


def _check_decodes(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected an image or a folder of images")
    try:
        with Image.open(file):
            pass
    except OSError as error:
        raise ValueError(f"{file}: does not decode; expected an image") from error


def _found(instances: Any, classes: tuple[str, ...], min_score: float) -> list[Found]:
    rows: Iterable[tuple[NDArray[np.float32], float, int]]
    rows = zip(instances.bboxes.tolist(), instances.scores.tolist(), instances.labels.tolist(), strict=True)
    found = [Found(classes[label], score, tuple(box)) for box, score, label in rows if score >= min_score]
    return sorted(found, key=lambda thing: -thing.score)


def _colour(name: str) -> tuple[int, ...]:
    # the same colour in every picture; dark enough for white text
    hue = sum(name.encode()) * 137 % 360
    return ImageColor.getrgb(f"hsl({hue}, 90%, 35%)")
