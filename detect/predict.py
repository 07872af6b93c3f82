"""Things found in images, by mmdet's own prediction or another's, and pictures that show them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmdet.apis import inference_detector
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import nn

from classify.checkpoint import ModelCard
from detect.fitting import Boxes
from detect.model import mmdet_config
from detect.video import VIDEO_ENDINGS, is_video, open_video

__all__ = ["Found", "draw", "found_in", "input_files", "picture_name", "predict"]

_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", *VIDEO_ENDINGS)


@dataclass(frozen=True)
class Found:
    """One object, in pixels of its image."""

    name: str
    """Of its class."""
    score: float
    box_xyxy: tuple[float, ...]


def input_files(paths: Iterable[Path]) -> list[Path]:
    """Return the given images and videos and those directly in the given folders, checked before all is decoded.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is none, one does not decode, or two have the same name, as their pictures would.
    """
    files: dict[str, Path] = {}
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path}: holds no images; expected files ending in {', '.join(_ENDINGS)}")
        for file in inside:
            _check_decodes(file)
            name = picture_name(file)
            if name in files:
                raise ValueError(f"{file}: same name as {files[name]}; expected each name once")
            files[name] = file
    return list(files.values())


def picture_name(file: Path) -> str:
    """Return the name of the image or video that shows what was found in that file."""
    if is_video(file):
        return f"{file.stem}.mp4"
    is_known = Image.registered_extensions().get(file.suffix.lower()) in Image.SAVE
    return file.name if is_known else f"{file.name}.png"  # the whole name: frame.001 and frame.002 are two


def predict(
    detector: nn.Module, card: ModelCard, images: Iterable[NDArray[np.uint8]], min_score: float
) -> Iterator[list[Found]]:
    """Yield what mmdet's prediction finds in each RGB image (height x width x 3), highest score first."""
    detector.cfg = mmdet_config(card)  # where mmdet looks for the preprocessing
    for image_HW3 in images:
        with DefaultScope.overwrite_default_scope("mmdet"):
            instances = inference_detector(detector, np.ascontiguousarray(image_HW3[..., ::-1])).pred_instances.numpy()
        yield found_in((instances.bboxes, instances.scores, instances.labels), card.classes, min_score)


def found_in(boxes: Boxes, classes: tuple[str, ...], min_score: float) -> list[Found]:
    """Return the boxes of an image with the names of their classes, highest score first."""
    rows = zip(*(array.tolist() for array in boxes), strict=True)
    found = [Found(classes[label], score, tuple(box)) for box, score, label in rows if score >= min_score]
    return sorted(found, key=lambda thing: -thing.score)


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
        raise FileNotFoundError(f"{file}: no such file; expected an image, a video or a folder of them")
    if is_video(file):
        open_video(file)
        return
    try:
        with Image.open(file):
            pass
    except OSError as error:
        raise ValueError(f"{file}: does not decode; expected an image") from error


def _colour(name: str) -> tuple[int, ...]:
    # the same colour in every picture; dark enough for white text
    hue = sum(name.encode()) * 137 % 360
    return ImageColor.getrgb(f"hsl({hue}, 90%, 35%)")
